"""Law 5: outputs keep their shapes, and ``model.tome`` says what happened inside."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from adapters.frameworks import PADDLE, TORCH
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NoForwardError,
    NotPatchedError,
)


def test_unmerge_is_a_gather_by_the_source(own):
    fw, model = own.fw, own.patched(r=[9, 0, 3], trace_source=True)
    fw.forward(model, own.images())
    rows = np.random.default_rng(0).standard_normal((3, model.tome.tokens[-1], 5))
    source = fw.numpy(model.tome.source)
    expected = np.take_along_axis(rows, source[:, :, None], axis=1)
    assert np.array_equal(fw.numpy(model.tome.unmerge(fw.tensor(rows))), expected)
    assert source.dtype == np.int64


def test_unmerge_works_without_tracing_and_without_merging(own):
    fw, model = own.fw, own.patched(r=0)
    fw.forward(model, own.images())
    rows = np.random.default_rng(0).standard_normal((3, own.num_tokens(), 5))
    assert np.array_equal(fw.numpy(model.tome.unmerge(fw.tensor(rows))), rows)
    fw.tome.apply_patch(model, trace_source=True)
    fw.forward(model, own.images())
    assert np.array_equal(fw.numpy(model.tome.source), [np.arange(own.num_tokens())] * 3)


def test_a_dense_head_gets_a_full_grid(plain):
    """A segmentation head on features of a merging model: one vector for each patch, in its place."""
    fw, images = plain.fw, plain.images()
    model = plain.patched(r=8, trace_source=True)
    features = model.forward_features(fw.tensor(images))
    grid = fw.numpy(model.tome.grid(features))
    assert grid.shape == (3, 32, 8, 8)
    rows = fw.numpy(features)[:, 1:].reshape(3, 8, 8, 32)
    assert np.array_equal(grid, rows.transpose(0, 3, 1, 2))
    assert np.array_equal(
        fw.numpy(model.tome.grid(features, (4, 16))),
        rows.reshape(3, 4, 16, 32).transpose(0, 3, 1, 2),
    )
    source = fw.numpy(model.tome.source)[:, 1:].reshape(3, 8, 8)
    slots = np.random.default_rng(0).standard_normal((3, model.tome.tokens[-1], 5))
    by_slot = fw.numpy(model.tome.grid(fw.tensor(slots)))
    for b in range(3):
        assert np.array_equal(by_slot[b].transpose(1, 2, 0), slots[b][source[b]])
        same = source[b].reshape(-1)
        vectors = grid[b].reshape(32, -1).T
        assert all((vectors[same == slot] == vectors[same == slot][0]).all() for slot in same)


def test_a_grid_that_does_not_hold_the_patches(plain):
    fw, model = plain.fw, plain.patched(r=8)
    fw.forward(model, plain.images())
    x = fw.tensor(np.zeros((3, 65, 5)))
    text = r"`size` must be \(height, width\) with height \* width = 64, .*; got 8 x 7"
    with pytest.raises(ArgumentValueError, match=text):
        model.tome.grid(x, (8, 7))
    with pytest.raises(ArgumentTypeError, match="`size` must be an integer"):
        model.tome.grid(x, (8.0, 8))
    with pytest.raises(ArgumentValueError, match=r"must have shape \(3, 33, C\)"):
        model.tome.grid(fw.tensor(np.zeros((3, 64, 5))))


@pytest.mark.parametrize("shape", [(3, 32, 5), (2, 33, 5), (3, 65, 5)], ids=str)
def test_unmerge_refuses_another_shape(plain, shape):
    model = plain.patched(r=8)
    plain.fw.forward(model, plain.images())
    with pytest.raises(ArgumentValueError, match=r"must have shape \(3, 33, C\).*got \(\d, \d+, 5"):
        model.tome.unmerge(plain.fw.tensor(np.zeros(shape)))
    with pytest.raises(ArgumentValueError, match=r"\(B, n, C\)"):
        model.tome.unmerge(plain.fw.tensor(np.zeros((3, 33))))


def test_unmerge_refuses_another_library(plain):
    model = plain.patched(r=8)
    plain.fw.forward(model, plain.images())
    other = PADDLE if plain.fw is TORCH else TORCH
    for rows in (np.zeros((3, 33, 5)), other.tensor(np.zeros((3, 33, 5)))):
        with pytest.raises(ArgumentTypeError, match=f"must be a {plain.fw.name} array"):
            model.tome.unmerge(rows)
    with pytest.raises(ArgumentTypeError, match="list"):
        model.tome.unmerge([[1.0]])


@pytest.mark.parametrize("result", ["tokens", "sizes", "source", "unmerge"])
def test_results_before_any_forward_are_an_error(plain, result):
    model = plain.patched(r=8, trace_source=True)
    ask = {"unmerge": lambda: model.tome.unmerge(plain.fw.tensor(np.zeros((3, 33, 5))))}
    ask = ask.get(result, lambda: getattr(model.tome, result))
    with pytest.raises(NoForwardError, match="no forward pass in this thread since it was patched"):
        ask()


def test_results_belong_to_the_calling_thread(plain):
    model, caught = plain.patched(r=8), []
    plain.fw.forward(model, plain.images())

    def ask():
        try:
            model.tome.tokens  # noqa: B018
        except NoForwardError as error:
            caught.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(timeout=30)
    assert "no forward pass in this thread" in caught[0]
    assert model.tome.tokens[-1] == 33


def test_results_carry_no_gradients(plain):
    model = plain.patched(r=8, trace_source=True)
    model.train()
    model(plain.tensors()).sum().backward()
    for result in (model.tome.sizes, model.tome.source):
        graph = not result.stop_gradient if plain.fw is PADDLE else result.requires_grad
        assert not graph


def test_source_needs_trace_source(plain):
    model = plain.patched(r=8)
    plain.fw.forward(model, plain.images())
    text = r"source map was not kept: call apply_patch\(model, trace_source=True\)"
    with pytest.raises(NoForwardError, match=text):
        model.tome.source  # noqa: B018


def test_the_handle_is_the_same_from_both_sides(plain):
    model = plain.patched(r=8)
    other = plain.fw.tome.handle(model)
    other.r = 4
    assert model.r == model.tome.r == 4
    plain.fw.forward(model, plain.images())
    assert other.tokens == model.tome.tokens == [61, 57, 53, 49]
    assert "4 layers, r=4, prop_attn=True, restore=True" in repr(other)


def test_handle_and_remove_of_an_unpatched_model(plain):
    fw, model = plain.fw, plain.model()
    for function in (fw.tome.handle, fw.tome.remove_patch):
        with pytest.raises(NotPatchedError, match=r"this VisionTransformer is not patched; call"):
            function(model)


def test_handle_of_what_holds_a_patched_model_names_it(plain):
    fw = plain.fw
    outer = fw.container(inner=plain.patched(r=8))
    for function in (fw.tome.handle, fw.tome.remove_patch):
        with pytest.raises(NotPatchedError, match=r"but model\.inner is; use model\.inner instead"):
            function(outer)


def test_a_module_around_the_tower_can_be_patched(plain):
    fw, images = plain.fw, plain.images()
    expected = fw.forward(plain.patched(r=8), images)
    outer = fw.container(inner=plain.model())
    before = fw.fingerprint(outer)
    assert fw.tome.apply_patch(outer, r=8) is outer
    assert np.array_equal(fw.forward(outer.inner, images), expected)
    assert outer.tome.tokens[-1] == 33
    assert not hasattr(outer.inner, "r")
    fw.tome.remove_patch(outer)
    assert fw.fingerprint(outer) == before
