"""The last block computes only the prefix tokens: same logits and gradients, honest shapes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings

import numpy as np
import paddle
import pytest
import torch

from adapters.cases import OWN, by_name
from tomecore.adapters import Trim
from tomecore.errors import (
    ArgumentValueError,
)
from tomecore.schedule import for_tokens

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
        with pytest.raises(ArgumentValueError, match=r"computes only these: call apply"):
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


@pytest.mark.parametrize("r", [0, 8])
def test_a_form_with_a_half_of_its_own_that_returns_no_key(plain, r):
    """As users write it: every field by position, and only ``(B, rows, C)`` is returned."""
    fw, model = plain.fw, plain.model()
    (spec,) = (s for s in fw.tome.SPECS if s.is_tower(model) and s.is_block(model.blocks[0]))

    def attend(host, block, x, bias, given, rows):
        half = spec.attend(host, block, x, bias, given)
        return (half[0] if isinstance(half, tuple) else half)[:, :rows]

    form = Trim(spec.attend, attend, "attn", spec.trim.classes, spec.trim.towers, spec.trim.keys)
    known = list(fw.tome.HOST.registered)
    fw.tome.register(dataclasses.replace(spec, family="mine", trim=form))
    try:
        trimmed, whole = pair(plain, r=r)
        same(fw.forward(trimmed, plain.images()), fw.forward(whole, plain.images()))
        assert trimmed.forward_features(plain.tensors()).shape[1] == plain.prefix
    finally:
        fw.tome.HOST.registered[:] = known


# --- graphs


@pytest.mark.graph
@pytest.mark.parametrize("r", [0, 8])
def test_compiled(r):
    plain = by_name(OWN)["torch-plain"]
    trimmed, whole = pair(plain, r=r)
    torch._dynamo.reset()
    found = torch.compile(trimmed, fullgraph=True, backend="eager")(plain.tensors())
    same(found.detach().numpy(), plain.fw.forward(whole, plain.images()))
    features = torch.compile(trimmed.forward_features, fullgraph=True, backend="eager")
    assert features(plain.tensors()).shape[1] == 1


@pytest.mark.graph
@pytest.mark.parametrize("r", [0, 8])
def test_exported(r):
    plain = by_name(OWN)["torch-plain"]
    trimmed, whole = pair(plain, r=r)
    found = torch.export.export(trimmed, (plain.tensors(),)).module()(plain.tensors())
    same(found.detach().numpy(), plain.fw.forward(whole, plain.images()))


@pytest.mark.graph
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


@pytest.mark.parametrize("rule", ["ratio", "constant"])
def test_for_tokens_ends_with_the_number_though_the_last_layer_merges_nothing(plain, rule):
    model = plain.patched(trim_last=True)
    model.r = for_tokens(model, 33, rule)
    plain.fw.forward(model, plain.images())
    assert model.tome.tokens[-1] == 33
