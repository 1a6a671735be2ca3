"""One exported graph serves any batch size: nothing in the core reads it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

import tomecore as tc
from tomecore.backends import backend_of
from tomecore.matching.similarity import unit_keys

pytestmark = pytest.mark.graph

SOURCES, DESTINATIONS = np.array([2, 0]), np.array([1])


def layer(keys, x, size):
    """Every operation of the core that an adapter or a user may trace."""
    plan = tc.bipartite_soft_matching(keys, 3, protected=1)
    mean, sizes = tc.merge_weighted(plan, x, size)
    following = tc.kth_bipartite_soft_matching(mean, 4)
    last = tc.partition_matching(following.merge(mean), SOURCES, DESTINATIONS, 1, chunk=1)
    source = tc.compose(tc.compose(tc.compose(None, plan), following), last)
    return mean, sizes, plan.unmerge(plan.merge(x, "max")), following.merge(mean), source


def arguments(batch):
    rng = np.random.default_rng(batch)
    size = rng.integers(1, 5, size=(batch, 12)).astype("float32")
    return rng.normal(size=(batch, 12, 4)), rng.normal(size=(batch, 12, 5)), size


class Layer(torch.nn.Module):
    def forward(self, keys, x, size):
        return layer(keys, x, size)


def exported_from_torch():
    batch = torch.export.Dim("batch")
    example = tuple(map(torch.tensor, arguments(2)))
    return torch.export.export(Layer(), example, dynamic_shapes=({0: batch},) * 3).module()


def static_graph_of_paddle():
    shapes = (([None, 12, 4], "float64"), ([None, 12, 5], "float64"), ([None, 12], "float32"))
    specs = [paddle.static.InputSpec(*one) for one in shapes]
    return paddle.jit.to_static(layer, input_spec=specs, full_graph=True)


@pytest.mark.parametrize(
    ("trace", "to_array"),
    [(exported_from_torch, torch.tensor), (static_graph_of_paddle, paddle.to_tensor)],
    ids=["torch.export", "paddle.jit.to_static"],
)
def test_any_batch_size(trace, to_array):
    traced = trace()
    for batch in (1, 2, 5):
        found = traced(*map(to_array, arguments(batch)))
        for one, expected in zip(found, layer(*arguments(batch)), strict=True):
            assert tuple(one.shape) == expected.shape
            np.testing.assert_allclose(one.numpy(), expected, rtol=1e-11, atol=1e-12)


def within(keys, sources, destinations):
    """Token numbers that a graph gets as arguments have no values while it is traced."""
    plan = tc.partition_matching(keys, sources, destinations, 4, chunk=2)
    return plan.kept, plan.merged, plan.into, plan.slots


class Within(torch.nn.Module):
    def forward(self, keys, sources, destinations):
        return within(keys, sources, destinations)


def within_exported():
    batch = torch.export.Dim("batch")
    shapes = {0: batch}, {0: batch}, None
    example = tuple(map(torch.tensor, partition(2)))
    return torch.export.export(Within(), example, dynamic_shapes=shapes).module()


def within_static():
    specs = [([None, 12, 4], "float64"), ([None, 7], "int64"), ([3], "int64")]
    specs = [paddle.static.InputSpec(*one) for one in specs]
    return paddle.jit.to_static(within, input_spec=specs, full_graph=True)


def within_sot():
    return paddle.jit.to_static(within, full_graph=False)


def within_compiled():
    return torch.compile(within, fullgraph=True, backend="eager", dynamic=True)


def partition(batch):
    rng = np.random.default_rng(batch)
    sources = np.array([rng.permutation(9)[:7] for _ in range(batch)])
    return rng.normal(size=(batch, 12, 4)), sources, np.array([10, 9, 11])


@pytest.mark.parametrize(
    ("trace", "to_array", "batches"),
    [
        (within_exported, torch.tensor, (2, 1, 5)),
        (within_compiled, torch.tensor, (2, 1, 5)),
        (within_static, paddle.to_tensor, (2, 1, 5)),
        (within_sot, paddle.to_tensor, (2,)),  # each takes seconds to trace
    ],
    ids=["torch.export", "torch.compile", "full graph", "SOT"],
)
def test_traced_token_numbers(trace, to_array, batches):
    backend_of(to_array(np.ones(2)))  # imports the backend, which SOT would trace, too, and fail
    traced = trace()
    for batch in batches:
        given = partition(batch)
        found = traced(*map(to_array, given))
        for one, expected in zip(found, within(*given), strict=True):
            np.testing.assert_array_equal(one.numpy(), expected)


def test_token_numbers_under_vmap():
    """In torch each sample has its own numbers, whose values cannot be read."""
    keys, sources, destinations = partition(3)
    mapped = torch.func.vmap(
        lambda keys, sources: within(keys[None], sources[None], torch.tensor(destinations))
    )
    found = mapped(torch.tensor(keys), torch.tensor(sources))
    for one, expected in zip(found, within(keys, sources, destinations), strict=True):
        np.testing.assert_array_equal(one[:, 0].numpy(), expected)


def test_numpy_token_numbers_in_a_compiled_graph():
    """Dynamo turns NumPy's arrays into tensors of the graph."""
    keys, _, _ = arguments(2)
    match = torch.compile(
        lambda keys: tc.partition_matching(keys, SOURCES, DESTINATIONS).slots,
        fullgraph=True,
        backend="eager",
    )
    expected = tc.partition_matching(keys, SOURCES, DESTINATIONS).slots
    np.testing.assert_array_equal(match(torch.tensor(keys)).numpy(), expected)


def scaled(x):
    return unit_keys(backend_of(x), x)


def test_keys_are_copied_in_a_static_graph_of_paddle():
    """Paddle's in-place pass scales them where they are, if they have another name ("share_data").

    What then reads the keys is wrong in some runs only, so this looks at the graph.
    """
    spec = paddle.static.InputSpec([None, 12, 4], "float64")
    static = paddle.jit.to_static(scaled, input_spec=[spec], full_graph=True)
    keys = arguments(3)[0]
    np.testing.assert_allclose(static(paddle.to_tensor(keys)).numpy(), scaled(keys), rtol=1e-12)
    program = str(static.concrete_program.main_program)
    assert "assign" in program
    assert "share_data" not in program
