"""trim_last=True is refused, and nothing changed, where it would be wrong; also where it becomes so later."""

from __future__ import annotations

import copy
import dataclasses
import types

import numpy as np
import paddle
import pytest
import torch

from adapters.cases import OWN, by_name
from adapters.frameworks import PADDLE, TORCH
from tomecore.adapters import Spec, Trim
from tomecore.errors import ArgumentTypeError, LostStateError, UnsupportedModelError
from tomecore.parity import compare


def same(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def refused(case, model, text, **settings):
    before = case.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        case.fw.tome.apply_patch(model, **{"r": 8, "trim_last": True, **settings})
    assert case.fw.fingerprint(model) == before
    assert str(caught.value).startswith("trim_last=True is not supported for this ")
    assert "Use trim_last=False, which is correct for every model." in str(caught.value)
    case.fw.tome.apply_patch(model, r=8)  # and without it there is nothing wrong


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_a_bad_value(plain, value):
    model = plain.model()
    before = plain.fw.fingerprint(model)
    with pytest.raises(ArgumentTypeError, match=r"`trim_last` must be True or False; got"):
        plain.fw.tome.apply_patch(model, trim_last=value)
    assert plain.fw.fingerprint(model) == before


@pytest.mark.parametrize("name", ["torch-average", "paddle-average"])
def test_no_token_in_front(name):
    case = by_name(OWN)[name]
    text = r"this VisionTransformer \(.*\): it has no prefix token \(class, distillation"
    refused(case, case.model(), text)


def test_a_model_that_pools(plain):
    model = plain.model()
    model.global_pool = "avg"
    refused(plain, model, r"the model pools over all tokens \(global_pool='avg'\)")


def subclass(obj, **members):
    obj.__class__ = type("Own", (type(obj),), members)


def test_a_tower_with_a_head_of_its_own(plain):
    model = plain.model()
    subclass(model, forward_head=lambda self, x: self.head(x.mean(1)))
    refused(
        plain, model, "this Own .*: Own has a forward_head of its own, which may read other tok"
    )


def test_a_tower_with_another_reader(plain):
    """Its own method would get only the first tokens, without any error."""
    for method in (lambda self: None, classmethod(lambda cls: None), staticmethod(lambda: None)):
        model = plain.model()
        subclass(model, patches=method)
        refused(plain, model, "this Own .*: Own has a patches of its own, which may read other tok")


def test_a_tower_with_other_names_only(plain):
    model = plain.model()
    subclass(model, _something=lambda self: None, number=3, kind=int)
    plain.fw.tome.apply_patch(model, r=8, trim_last=True)


def test_another_list_of_blocks(plain):
    model = plain.model()
    subclass(model.blocks, forward=lambda self, x: x.mean(1))
    refused(plain, model, "of its blocks: Own has a forward of its own, which may read other tok")


def test_a_method_replaced_on_the_instance(plain):
    model = plain.model()
    model.forward_features = types.MethodType(lambda self, x: x, model)
    refused(plain, model, "its forward_features was replaced on this instance")


def test_something_unknown_around_the_tower(plain):
    model = plain.model()
    outer = plain.fw.container(vision=model)
    refused(
        plain,
        outer,
        r"which tokens .* reads of model\.vision is not known\. If you know that it reads only the prefix "
        r"tokens, call apply_patch\(model\.vision, trim_last=True\)",
    )
    plain.fw.tome.remove_patch(outer)
    plain.fw.tome.apply_patch(outer.vision, r=8, trim_last=True)


@pytest.mark.parametrize("kind", ["pre_hook", "post_hook"])
def test_a_hook_on_the_attention(kind):
    plain = by_name(OWN)["torch-plain"]  # in Paddle every form bypasses it
    model = plain.model()
    getattr(plain.fw, kind)(model.blocks[3].attn, lambda *_: None)
    refused(
        plain,
        model,
        r"attn \(Attention\) has a forward hook, which .* does not call; remove the hook, or hook",
    )


def test_a_hook_on_another_block_is_called():
    plain, calls = by_name(OWN)["torch-plain"], []
    model = plain.model()
    plain.fw.post_hook(model.blocks[2].attn, lambda *_: calls.append(1))
    plain.fw.tome.apply_patch(model, r=8, trim_last=True)
    plain.fw.forward(model, plain.images())
    assert calls == [1]


def test_more_in_the_attention_than_is_known(plain):
    model = plain.model()
    model.blocks[3].attn.gate = plain.fw.linear(32, 32)
    refused(plain, model, r"attention \(.*Attention\) holds gate, which the family's description")


def test_a_family_without_such_a_form(plain):
    fw, model = plain.fw, plain.model()
    (spec,) = (s for s in fw.tome.SPECS if s.is_tower(model) and s.is_block(model.blocks[0]))
    fields = {name: value for name, value in vars(spec).items() if name not in ("trim", "family")}
    known = list(fw.tome.HOST.registered)
    fw.tome.register(Spec(family="mine", **fields))
    try:
        refused(
            plain, model, r"\(mine\): tomecore has no form of its last block that computes only"
        )
    finally:
        fw.tome.HOST.registered[:] = known


def test_a_spec_made_of_another_with_its_own_attention_has_no_such_form(plain):
    model = plain.model()
    (spec,) = (s for s in plain.fw.tome.SPECS if s.is_tower(model) and s.is_block(model.blocks[0]))
    assert dataclasses.replace(spec, notes="").trim is spec.trim
    assert dataclasses.replace(spec, attend=lambda *given: spec.attend(*given)).trim is None


def test_the_forms_that_exist_are_named():
    for fw in (TORCH, PADDLE):
        for spec in fw.tome.SPECS:
            assert spec.trim is None or isinstance(spec.trim, Trim)
    families = {s.family for fw in (TORCH, PADDLE) for s in fw.tome.SPECS if s.trim is not None}
    assert families == {
        "timm VisionTransformer",
        "torchvision VisionTransformer",
        "transformers ViT",
        "transformers DINOv2",
        "transformers DINOv3",
        "transformers CLIP / SigLIP",
        "open_clip VisionTransformer",
        "OpenAI CLIP VisionTransformer",
        "PLSC / PaddleClas / ppim VisionTransformer",
    }
    assert TORCH.tome.HOST.fallback.trim is None


# --- what changes after the patch


def changed(case, model, text):
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        case.fw.forward(model, case.images())
    assert "trim_last=True would give wrong results" in str(caught.value)


@pytest.mark.parametrize("r", [0, 8])
def test_a_hook_that_comes_later(plain, r):
    model = plain.patched(r=r, trim_last=True)
    hook = plain.fw.post_hook(model.blocks[3].attn, lambda *_: None)
    changed(plain, model, r"blocks\[3\] .* attn \(Attention\) has a forward hook")
    hook.remove()
    plain.fw.forward(model, plain.images())


def test_a_backward_hook_that_comes_later():
    plain = by_name(OWN)["torch-plain"]
    model = plain.patched(trim_last=True)
    model.blocks[3].attn.register_full_backward_hook(lambda *_: None)
    changed(plain, model, r"blocks\[3\] .* attn \(Attention\) has a forward hook")


def test_an_attention_that_is_replaced_later(plain):
    model = plain.patched(trim_last=True)
    attn = copy.deepcopy(model.blocks[3].attn)
    subclass(attn, forward=lambda self, x, attn_mask=None: x)
    model.blocks[3].attn = attn
    changed(plain, model, r"blocks\[3\] .* attn \(Own\) was replaced after apply_patch")


def test_a_forward_that_is_replaced_later(plain):
    model = plain.patched(trim_last=True)
    model.blocks[3].attn.forward = lambda x, attn_mask=None: x
    changed(plain, model, r"blocks\[3\] .* attn \(Attention\) has a forward of its own")


def test_a_head_that_pools_later(plain):
    model = plain.patched(trim_last=True)
    model.global_pool = "avg"
    changed(plain, model, r"pools over all tokens .*call apply_patch\(model\) again without it")


def test_layers_of_a_trimmed_model_are_not_compared():
    model = by_name(OWN)["torch-plain"].patched(trim_last=True)
    with pytest.raises(
        UnsupportedModelError, match=r"was patched with trim_last=True, and its last"
    ):
        compare(model, model, np.zeros((1, 3, 32, 32)))


def test_a_run_that_is_lost_is_loud(plain):
    fw, model = plain.fw, plain.patched(r=8, trim_last=True)
    hook = fw.post_hook(model.blocks[1], lambda *given: given[-1] * 1)
    with pytest.raises(LostStateError, match=r"or set model\.r = 0"):
        fw.forward(model, plain.images())
    hook.remove()
    fw.forward(model, plain.images())


def test_with_nothing_merged_a_new_tensor_goes_on(plain):
    """Within a call of the model there is nothing to lose; in a block called by hand there may be."""
    fw, model = plain.fw, plain.patched(r=0, trim_last=True)
    expected = fw.forward(model, plain.images())
    fw.post_hook(model.blocks[1], lambda *given: given[-1] * 1)
    assert np.array_equal(fw.forward(model, plain.images()), expected)
    with pytest.raises(LostStateError, match="without trim_last"):
        model.blocks[3](fw.tokens(model, plain.images()))


# --- modules of the user inside the attention


class Adapted(torch.nn.Module):
    """A LoRA: it holds the layer that it stands in for."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.more = torch.nn.Linear(inner.in_features, inner.out_features).to(inner.weight.dtype)

    def forward(self, x):
        return self.inner(x) + self.more(x)


class AdaptedInPaddle(paddle.nn.Layer):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.more = paddle.nn.Linear(*inner.weight.shape)
        self.more.to(dtype="float64")

    def forward(self, x):
        return self.inner(x) + self.more(x)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_adapter_in_place_of_the_projection_is_called(plain, when):
    fw, images = plain.fw, plain.images()
    adapted = Adapted if fw is TORCH else AdaptedInPaddle
    model = plain.model()
    if when == "after":
        fw.tome.apply_patch(model, r=8, trim_last=True)
    for block in model.blocks:
        block.attn.qkv = adapted(block.attn.qkv)
    whole = copy.deepcopy(model)
    fw.tome.apply_patch(whole, r=8)
    if when == "before":
        fw.tome.apply_patch(model, r=8, trim_last=True)
    assert model.tome.trim_last
    same(fw.forward(model, images), fw.forward(whole, images))


@pytest.mark.parametrize("name", ["qkv", "proj"])
def test_a_hook_on_a_projection_is_called(plain, name):
    fw, model, shapes = plain.fw, plain.patched(r=8, trim_last=True), []
    hook = fw.post_hook(
        getattr(model.blocks[3].attn, name), lambda *given: shapes.append(tuple(given[-1].shape))
    )
    found = fw.forward(model, plain.images())
    hook.remove()
    assert shapes == [(3, 41, 96) if name == "qkv" else (3, 1, 32)]
    same(fw.forward(model, plain.images()), found)
