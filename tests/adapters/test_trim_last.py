"""The last block makes the tokens at the front alone: same logits, honest shapes, refused where it is wrong."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import types
import warnings

import numpy as np
import paddle
import pytest
import torch

from adapters.cases import OWN, by_name
from adapters.frameworks import PADDLE, TORCH
from tomecore.adapters import Spec, Trim
from tomecore.adapters._swap import unswap
from tomecore.arithmetic import plan_table
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    LostStateError,
    UnsupportedModelError,
)
from tomecore.schedule import for_speedup, for_tokens

TRIMMED = [case for case in OWN if not case.pooled]
#: Paddle's static graphs keep some constants in float32: unpatched models are 1e-8 off as well.
STATIC = 1e-7
SCHEDULES = [0, 8, (8, -1.0), [0, 5, 3, 60]]


@pytest.fixture(params=TRIMMED, ids=lambda case: case.name)
def case(request):
    return request.param


def same(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def pair(case, **settings):
    """The same model twice, patched with ``trim_last`` and without."""
    return case.patched(**settings, trim_last=True), case.patched(**settings)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("r", SCHEDULES, ids=str)
def test_the_logits_are_the_same(case, r, prop_attn, batch):
    trimmed, whole = pair(case, r=r, prop_attn=prop_attn)
    images = case.images(batch)
    same(case.fw.forward(trimmed, images), case.fw.forward(whole, images))


def test_a_schedule_object_and_a_new_r(case):
    trimmed, whole = pair(case, r=for_tokens(case.patched(), 33))
    for _ in range(2):
        same(case.fw.forward(trimmed, case.images()), case.fw.forward(whole, case.images()))
        trimmed.r = whole.r = 4


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("r", [0, 8])
def test_what_comes_out_and_what_the_handle_says(case, r, restore):
    fw, x = case.fw, case.tensors()
    model = case.patched(r=r, restore=restore, trace_source=True, trim_last=True)
    assert tuple(model.forward_features(x).shape) == (3, case.prefix, 32)
    n = case.num_tokens()
    left = [n - r, n - 2 * r, n - 3 * r, n - 3 * r]  # nothing merges in the last block
    assert model.tome.tokens == left
    sizes, source = fw.numpy(model.tome.sizes), fw.numpy(model.tome.source)
    assert sizes.shape == (3, left[-1])
    assert (sizes.sum(1) == n).all()
    assert all((np.bincount(a, minlength=left[-1]) == b).all() for a, b in zip(source, sizes))  # noqa: B905
    assert model.tome.trim_last
    assert repr(model.tome).endswith(f"restore={restore}, trim_last=True>")
    assert "trim_last" not in repr(case.patched().tome)


def test_what_came_out_cannot_be_laid_out(plain):
    model, x = plain.patched(r=8, trim_last=True), plain.tensors()
    features = model.forward_features(x)
    for ask in (model.tome.unmerge, model.tome.grid):
        with pytest.raises(ArgumentValueError, match=r"makes no others with trim_last=True: apply"):
            ask(features)


@pytest.mark.parametrize("r", [0, 8])
def test_readers_of_all_tokens_get_all_tokens(case, r):
    trimmed, whole = pair(case, r=r)
    x = case.tensors()
    with trimmed.tome.all_tokens():
        found = trimmed.forward_features(x)
    assert trimmed.tome.tokens == [case.num_tokens() - r * layer for layer in (1, 2, 3, 4)]
    with whole.tome.all_tokens():
        expected = whole.forward_features(x)
    same(case.fw.numpy(found), case.fw.numpy(expected))
    assert trimmed.forward_features(x).shape[1] == case.prefix


@pytest.mark.parametrize("r", [0, 8])
def test_the_gradients_are_the_same(case, r):
    def gradients(model):
        model.train()
        case.fw.seed(5)
        images = case.tensors()
        case.fw.require_gradient(images)
        found = case.fw.gradients(model, lambda: (model(images) ** 2).sum())
        return found | {"images": case.fw.numpy(images.grad)}

    trimmed, whole = pair(case, r=r)
    found, expected = gradients(trimmed), gradients(whole)
    assert found.keys() == expected.keys()
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        assert np.abs(found[name] - value).max() <= 1e-11 * largest, name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("r", [0, 8])
def test_checkpointed_blocks(plain, r, reentrant):
    fw = plain.fw

    def gradients(checkpointed):
        model = plain.patched(r=r, trim_last=True)
        model.train()
        x = fw.tensor(fw.numpy(plain.entering(model, plain.images())))
        fw.require_gradient(x)
        y = x
        for block in model.blocks:
            y = fw.checkpoint(block, y, reentrant=reentrant) if checkpointed else block(y)
        assert y.shape[1] == plain.prefix
        return fw.gradients(model, lambda: (y**2).sum()) | {"x": fw.numpy(x.grad)}

    found, expected = gradients(True), gradients(False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same(found[name], value)


def test_patching_again_and_removing(case):
    fw, model, images = case.fw, case.model(), case.images()
    before, output = fw.fingerprint(model), fw.forward(model, images)
    fw.tome.apply_patch(model, r=8)
    merged = fw.forward(model, images)
    fw.tome.apply_patch(model, trim_last=True)
    assert (model.r, model.tome.trim_last) == (8, True)
    same(fw.forward(model, images), merged)
    assert model.forward_features(fw.tensor(images)).shape[1] == case.prefix
    fw.tome.apply_patch(model)
    assert not model.tome.trim_last
    assert model.forward_features(fw.tensor(images)).shape[1] == case.num_tokens()
    assert np.array_equal(fw.forward(model, images), merged)
    fw.tome.apply_patch(model, trim_last=True)
    fw.tome.remove_patch(model)
    assert fw.fingerprint(model) == before
    assert np.array_equal(fw.forward(model, images), output)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_trimmed_too(case, duplicate):
    model = case.patched(r=8, trim_last=True)
    twin = duplicate(model)
    assert twin.tome.trim_last
    assert twin.forward_features(case.tensors()).shape[1] == case.prefix
    same(case.fw.forward(twin, case.images()), case.fw.forward(model, case.images()), 0)


def test_one_layer(case):
    """The first block is the last."""
    trimmed, whole = case.patched(depth=1, r=8, trim_last=True), case.model(depth=1)
    same(case.fw.forward(trimmed, case.images()), case.fw.forward(whole, case.images()))
    assert trimmed.tome.tokens == [case.num_tokens()]


def test_only_the_last_layer_wishes_too_much(plain):
    model = plain.patched(r=[0, 0, 0, 60], trim_last=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.fw.forward(model, plain.images())


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


# --- what is refused


def refused(case, model, text, **settings):
    before = case.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        case.fw.tome.apply_patch(model, **{"r": 8, "trim_last": True, **settings})
    assert case.fw.fingerprint(model) == before
    assert str(caught.value).startswith("trim_last=True cannot be had for this ")
    assert "Leave trim_last=False, which is right for every model." in str(caught.value)
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
    text = r"this VisionTransformer \(.*\): it has no token at the front \(class, distillation"
    refused(case, case.model(), text)


def test_a_model_that_pools(plain):
    model = plain.model()
    model.global_pool = "avg"
    refused(plain, model, r"the model pools over tokens \(global_pool='avg'\)")


def subclass(obj, **members):
    obj.__class__ = type("Own", (type(obj),), members)


def test_a_tower_with_a_head_of_its_own(plain):
    model = plain.model()
    subclass(model, forward_head=lambda self, x: self.head(x.mean(1)))
    refused(
        plain, model, "this Own .*: Own has a forward_head of its own, which may read other tok"
    )


def test_a_tower_with_other_names_only(plain):
    model = plain.model()
    subclass(model, something=lambda self: None, number=3)
    plain.fw.tome.apply_patch(model, r=8, trim_last=True)


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
        r"which tokens .* reads of model\.vision is not known\. Where you know that it reads the first "
        r"tokens alone, call apply_patch\(model\.vision, trim_last=True\)",
    )
    plain.fw.tome.remove_patch(outer)
    plain.fw.tome.apply_patch(outer.vision, r=8, trim_last=True)


@pytest.mark.parametrize("kind", ["pre_hook", "post_hook"])
def test_a_hook_on_the_attention(kind):
    plain = by_name(OWN)["torch-plain"]  # in Paddle every form bypasses it
    model = plain.model()
    getattr(plain.fw, kind)(model.blocks[3].attn, lambda *_: None)
    refused(plain, model, "the last block's attn has a hook, which is not called; hook the modules")


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
    refused(plain, model, r"attention \(.*Attention\) holds gate, which the form for single tokens")


def test_a_family_without_such_a_form(plain):
    fw, model = plain.fw, plain.model()
    (spec,) = (s for s in fw.tome.SPECS if s.is_tower(model) and s.is_block(model.blocks[0]))
    fields = {name: value for name, value in vars(spec).items() if name not in ("trim", "family")}
    known = list(fw.tome.HOST.registered)
    fw.tome.register(Spec(family="mine", **fields))
    try:
        refused(plain, model, r"\(mine\): tomecore has no form of its last block that makes single")
    finally:
        fw.tome.HOST.registered[:] = known


def test_a_spec_made_of_another_with_its_own_attention_has_no_such_form(plain):
    model = plain.model()
    (spec,) = (s for s in plain.fw.tome.SPECS if s.is_tower(model) and s.is_block(model.blocks[0]))
    assert dataclasses.replace(spec, notes="").trim is spec.trim
    assert dataclasses.replace(spec, attend=lambda *given: spec.attend(*given)).trim is None


def test_the_forms_that_exist_are_few_and_named():
    for fw in (TORCH, PADDLE):
        for spec in fw.tome.SPECS:
            assert spec.trim is None or isinstance(spec.trim, Trim)
    families = {s.family for fw in (TORCH, PADDLE) for s in fw.tome.SPECS if s.trim is not None}
    assert families == {
        "timm VisionTransformer",
        "torchvision VisionTransformer",
        "transformers ViT",
        "transformers DINOv2",
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
    changed(plain, model, "the last block's attn has a hook")
    hook.remove()
    plain.fw.forward(model, plain.images())


def test_a_backward_hook_that_comes_later():
    plain = by_name(OWN)["torch-plain"]
    model = plain.patched(trim_last=True)
    model.blocks[3].attn.register_full_backward_hook(lambda *_: None)
    changed(plain, model, "the last block's attn has a hook")


def test_an_attention_that_is_replaced_later(plain):
    model = plain.patched(trim_last=True)
    attn = copy.deepcopy(model.blocks[3].attn)
    subclass(attn, forward=lambda self, x, attn_mask=None: x)
    model.blocks[3].attn = attn
    changed(plain, model, "the last block's attn is another than when the model was patched")


def test_a_forward_that_is_replaced_later(plain):
    model = plain.patched(trim_last=True)
    model.blocks[3].attn.forward = lambda x, attn_mask=None: x
    changed(plain, model, "the last block's attn has a forward of its own instance")


def test_a_head_that_pools_later(plain):
    model = plain.patched(trim_last=True)
    model.global_pool = "avg"
    changed(plain, model, r"pools over tokens .*call apply_patch\(model\) again without it")


@pytest.mark.parametrize("r", [0, 8])
def test_a_run_that_is_lost_is_loud(plain, r):
    """Without the run the last block cannot know whether somebody wants all tokens."""
    fw, model = plain.fw, plain.patched(r=r, trim_last=True)
    hook = fw.post_hook(model.blocks[1], lambda *given: given[-1] * 1)
    text = "without trim_last" if r == 0 else r"or set model\.r = 0"
    with pytest.raises(LostStateError, match=text):
        fw.forward(model, plain.images())
    hook.remove()
    fw.forward(model, plain.images())


# --- graphs


@pytest.mark.parametrize("r", [0, 8])
def test_compiled(r):
    plain = by_name(OWN)["torch-plain"]
    trimmed, whole = pair(plain, r=r)
    torch._dynamo.reset()
    found = torch.compile(trimmed, fullgraph=True, backend="eager")(plain.tensors())
    same(found.detach().numpy(), plain.fw.forward(whole, plain.images()))
    unswap(trimmed)
    assert trimmed.blocks(plain.entering(trimmed, plain.images())).shape[1] == 1


@pytest.mark.parametrize("r", [0, 8])
def test_exported(r):
    plain = by_name(OWN)["torch-plain"]
    trimmed, whole = pair(plain, r=r)
    found = torch.export.export(trimmed, (plain.tensors(),)).module()(plain.tensors())
    same(found.detach().numpy(), plain.fw.forward(whole, plain.images()))


@pytest.mark.parametrize("full_graph", [True, False])
@pytest.mark.parametrize("r", [0, 8])
def test_to_static(r, full_graph):
    plain = by_name(OWN)["paddle-plain"]
    trimmed, whole = pair(plain, r=r)
    specs = [paddle.static.InputSpec([None, 3, 32, 32], "float64")] if full_graph else None
    program = paddle.jit.to_static(trimmed, input_spec=specs, full_graph=full_graph)
    for batch in (3, 1):
        images = plain.images(batch)
        found = program(plain.fw.tensor(images)).numpy()
        same(found, plain.fw.forward(whole, images), STATIC)


def test_patching_again_is_traced_again():
    plain = by_name(OWN)["paddle-plain"]
    model = plain.patched(r=8)
    specs = [paddle.static.InputSpec([None, 3, 32, 32], "float64")]
    features = paddle.jit.to_static(model, input_spec=specs, full_graph=True)
    expected = features(plain.tensors()).numpy()
    plain.fw.tome.apply_patch(model, trim_last=True)
    same(model(plain.tensors()).numpy(), expected, STATIC)


# --- multiply-adds


def test_the_multiply_adds_match_a_flop_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = by_name(OWN)["torch-distilled"].patched(trim_last=True)
    images = by_name(OWN)["torch-distilled"].tensors(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images)
    found = model.tome.arithmetic
    assert found.multiply_adds(66, 0) == counter.get_total_flops() / 2
    assert (found.rows, found.keys) == (2, 2 * 32 * 32)


def test_the_limit_is_that_over_the_unpatched_model(plain):
    trimmed, whole = (model.tome.arithmetic for model in pair(plain))
    assert trimmed.unpatched == whole
    assert whole.unpatched is whole
    for r in (0, 8, [0, 5, 3, 60]):
        expected = whole.multiply_adds(65, 0) / trimmed.multiply_adds(65, r)
        assert trimmed.limit(65, r) == expected
        assert expected > whole.limit(65, 8 if r == 8 else 0)
    assert trimmed.multiply_adds(65, [0, 5, 3, 60]) == trimmed.multiply_adds(65, [0, 5, 3])


def test_both_frameworks_count_alike_when_trimmed():
    found = [by_name(OWN)[f"{fw}-plain"].patched(trim_last=True) for fw in ("torch", "paddle")]
    assert found[0].tome.arithmetic == found[1].tome.arithmetic


def test_the_plan_when_trimmed(plain):
    model = plain.patched(trim_last=True)
    rows = plan_table(model, 65, 8)
    assert [(row.asked, row.merged, row.tokens) for row in rows] == [
        (8, 8, 57),
        (8, 8, 49),
        (8, 8, 41),
        (0, 0, 41),
    ]
    found = model.tome.arithmetic
    shares = np.array(found.per_layer(65, 8)) / found.unpatched.per_layer(65, 0)[0]
    assert [row.share for row in rows] == shares.tolist()
    assert shares[-1] < 0.2


def test_a_wish_for_speed_counts_the_trimming(plain):
    trimmed, whole = pair(plain)
    both = [sum(for_speedup(m, 1.5)(4, 65, 1)[:-1]) for m in (trimmed, whole)]
    assert both[0] < both[1]
    assert trimmed.tome.arithmetic.limit(65, for_speedup(trimmed, 1.5)) >= 1.5
