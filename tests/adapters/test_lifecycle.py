"""Law 4: remove leaves no trace, applying twice stacks nothing, copies are independent."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from adapters.cases import OWN
from adapters.frameworks import TORCH
from adapters.laws.lifecycle import check_copy
from tomecore.errors import NoForwardError


def test_the_last_call_s_arguments_win_and_r_is_kept(plain):
    fw, model, images = plain.fw, plain.patched(r=8, prop_attn=False, trace_source=True), None
    images = plain.images()
    fw.forward(model, images)
    fw.tome.apply_patch(model)
    assert (model.r, model.tome.prop_attn) == (8, True)
    with pytest.raises(NoForwardError, match="no forward pass in this thread since it was patched"):
        model.tome.sizes  # noqa: B018
    assert np.array_equal(fw.forward(model, images), fw.forward(plain.patched(r=8), images))
    with pytest.raises(NoForwardError, match="trace_source=True"):
        model.tome.source  # noqa: B018
    fw.tome.apply_patch(model, r=3, restore=False)
    assert model.r == 3
    assert fw.numpy(model.forward_features(fw.tensor(images))).shape[1] == 53


def test_a_bad_second_call_leaves_the_first_in_place(plain):
    model = plain.patched(r=8, prop_attn=False)
    before = plain.fw.fingerprint(model)
    with pytest.raises(TypeError):
        plain.fw.tome.apply_patch(model, r="4")
    with pytest.raises(TypeError):
        plain.fw.tome.apply_patch(model, r=4, prop_attn=1)
    assert plain.fw.fingerprint(model) == before
    assert (model.r, model.tome.prop_attn) == (8, False)


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("own", [c for c in OWN if c.fw is TORCH], ids=lambda c: c.name)
def test_torch_save_too(own):
    check_copy(own, by_torch_save)


def test_weights_saved_from_a_patched_model_load_into_an_unpatched_one(plain):
    fw, images = plain.fw, plain.images()
    patched, other = plain.patched(r=8), plain.fw.prepare(plain.build(img_size=32, depth=4), 1)
    fw.forward(patched, images)
    load = other.load_state_dict if hasattr(other, "load_state_dict") else other.set_state_dict
    load(patched.state_dict())
    fw.tome.remove_patch(patched)
    assert np.array_equal(fw.forward(other, images), fw.forward(patched, images))


def test_user_hooks_survive_patching_and_removing(plain):
    fw, model, images = plain.fw, plain.model(), plain.images()
    calls = []
    for name, module in (("block", model.blocks[2]), ("qkv", model.blocks[2].attn.qkv)):
        fw.post_hook(module, lambda *_, name=name: calls.append(name))
    fw.tome.apply_patch(model, r=8)
    fw.forward(model, images)
    assert calls == ["qkv", "block"]
    fw.tome.remove_patch(model)
    fw.forward(model, images)
    assert calls == ["qkv", "block"] * 2
