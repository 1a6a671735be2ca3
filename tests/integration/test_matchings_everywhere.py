"""Every matching in traced graphs, in JAX, and in a library that has the standard only: NumPy's numbers."""

from __future__ import annotations

import array_api_strict
import jax
import numpy as np
import paddle
import pytest
import torch
from given_context import GivenContext, random_arrays

import tomecore as tc
from tomecore import matching

jax.config.update("jax_enable_x64", True)

#: what a matching gets of an image: keys, tokens, attention, values and padding
SHAPES = {"keys": (12, 6), "x": (12, 8), "attention": (12,), "values": (2, 12, 5), "valid": (12,)}


def inputs(batch):
    rng = np.random.default_rng(batch)
    arrays = random_arrays(rng, 12, batch=batch, valid=rng.random((batch, 12)) < 0.8)
    return tuple(arrays[name] for name in SHAPES)


def run(name, keys, x, attention, values, valid):
    """The merged tokens, their sizes, and the slot of each token."""
    context = GivenContext(x, attention, values, protected=1, valid=valid, layer=1, num_layers=3)
    plan = matching.find(name)(keys, 4, context)
    return *tc.merge_weighted(plan, x), plan.slots


def run_all(*given):
    return tuple(array for name in matching.names() for array in run(name, *given))


def run_all_without_padding(keys, x, attention, values, valid):
    return run_all(keys, x, attention, values, None)


def same(found, expected):
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", [run_all, run_all_without_padding])
def test_torch_compile(function):
    """In one graph: nothing is left to Python."""
    tensors = [torch.tensor(one) for one in inputs(3)]
    function(*tensors)  # the compiler cannot follow the first look-up of a library
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    same(compiled(*tensors), function(*inputs(3)))


class EveryMatching(torch.nn.Module):
    def forward(self, *given):
        return run_all(*given)


def test_torch_export():
    """One graph for all batch sizes."""
    batch = torch.export.Dim("batch")
    example = tuple(map(torch.tensor, inputs(2)))
    shapes = (({0: batch},) * len(example),)
    exported = torch.export.export(EveryMatching(), example, dynamic_shapes=shapes).module()
    for size in (1, 2, 5):
        same(exported(*map(torch.tensor, inputs(size))), run_all(*inputs(size)))


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "whole"])
@pytest.mark.parametrize("name", matching.names())
def test_static_graphs_of_paddle(name, padded):
    """One graph for all batch sizes."""

    def matched(keys, x, attention, values, valid):
        return run(name, keys, x, attention, values, valid if padded else None)

    specs = [
        paddle.static.InputSpec([None, *shape], str(array.dtype))
        for shape, array in zip(SHAPES.values(), inputs(2), strict=True)
    ]
    static = paddle.jit.to_static(matched, input_spec=specs, full_graph=True)
    for size in (1, 2, 5):
        given = inputs(size)
        same(static(*map(paddle.to_tensor, given)), matched(*given))


@pytest.mark.parametrize("function", [run_all, run_all_without_padding])
def test_jax_under_jit(function):
    same(jax.jit(function)(*map(jax.numpy.asarray, inputs(3))), function(*inputs(3)))


@pytest.mark.parametrize("function", [run_all, run_all_without_padding])
def test_the_standard_only(function):
    same(function(*map(array_api_strict.asarray, inputs(3))), function(*inputs(3)))
