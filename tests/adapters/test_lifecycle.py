"""Law 4: remove leaves no trace, applying twice stacks nothing, copies are independent."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from adapters.cases import OWN
from adapters.frameworks import TORCH
from tomecore.errors import NoForwardError, NotPatchedError


def leftovers(fw, model):
    """Attributes of ours anywhere in the model."""
    return [
        f"{path}.{name}"
        for path, module in fw.modules(model).items()
        for name in (*vars(module), *dir(type(module)))
        if "tome" in name.lower()
    ]


def hook_counts(fw, model):
    found = fw.fingerprint(model)
    return {path: list(map(len, v[2])) for path, v in found.items() if path != "parameters"}


def test_remove_leaves_no_trace(case):
    fw, model, images = case.fw, case.model(), case.images()
    inner = list(fw.modules(case.blocks(model)[1]).values())[-1]
    hook = fw.post_hook(inner, lambda *_: None)
    before, output = fw.fingerprint(model), fw.forward(model, images)
    keys = list(model.state_dict())
    assert leftovers(fw, model) == []

    assert fw.tome.apply_patch(model, r=8, trace_source=True) is model
    assert list(model.state_dict()) == keys
    assert leftovers(fw, model)
    fw.forward(model, images)
    assert fw.tome.remove_patch(model) is model

    assert fw.fingerprint(model) == before
    assert leftovers(fw, model) == []
    assert list(model.state_dict()) == keys
    assert np.array_equal(fw.forward(model, images), output)
    assert not hasattr(model, "r")
    assert not hasattr(model, "tome")
    hook.remove()


def test_patched_classes_keep_their_names(case):
    model = case.model()
    classes = [type(module) for module in case.fw.modules(model).values()]
    case.fw.tome.apply_patch(model)
    for module, cls in zip(case.fw.modules(model).values(), classes, strict=True):
        assert isinstance(module, cls)
        for name in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(type(module), name) == getattr(cls, name)
    assert len({type(block) for block in case.blocks(model)}) == 1


def test_applying_twice_stacks_nothing(case):
    fw, model, images = case.fw, case.model(), case.images()
    before = fw.fingerprint(model)
    fw.tome.apply_patch(model, r=8, prop_attn=False, trace_source=True)
    once, hooks, output = fw.fingerprint(model), hook_counts(fw, model), fw.forward(model, images)
    fw.tome.apply_patch(model, prop_attn=False, trace_source=True)
    again = fw.fingerprint(model)
    assert {path: value[:2] for path, value in again.items()} == {
        path: value[:2] for path, value in once.items()
    }
    assert hook_counts(fw, model) == hooks
    assert model.r == 8
    assert np.array_equal(fw.forward(model, images), output)
    fw.tome.remove_patch(model)
    assert fw.fingerprint(model) == before
    with pytest.raises(NotPatchedError, match=r"is not patched; call apply_patch\(model\) first"):
        fw.tome.remove_patch(model)


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


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
def test_copies_are_independent_and_still_patched(case, duplicate):
    check_copy(case, duplicate)


def by_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("own", [c for c in OWN if c.fw is TORCH], ids=lambda c: c.name)
def test_torch_save_too(own):
    check_copy(own, by_torch_save)


def check_copy(case, duplicate):
    fw, images = case.fw, case.images()
    model = case.patched(r=8, trace_source=True)
    output = fw.forward(model, images)
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert twin.r == 8
    with pytest.raises(NoForwardError, match="no forward pass"):
        twin.tome.sizes  # noqa: B018
    assert model.tome.tokens  # the original's results are still there

    assert np.array_equal(fw.forward(twin, images), output)
    twin.r = 4
    assert model.r == 8
    assert not np.allclose(fw.forward(twin, images), output)
    sizes = fw.numpy(model.tome.sizes)
    assert sizes.shape != fw.numpy(twin.tome.sizes).shape
    model.r = 0
    assert twin.r == 4
    fw.tome.remove_patch(model)
    assert leftovers(fw, model) == []
    assert twin.tome.tokens[0] == case.num_tokens() - 4
    fw.tome.remove_patch(twin)
    assert leftovers(fw, twin) == []
    assert hook_counts(fw, twin) == hook_counts(fw, model) == hook_counts(fw, case.model())
    assert np.array_equal(fw.forward(twin, images), fw.forward(model, images))


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
