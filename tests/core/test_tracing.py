"""One exported graph serves any batch size: nothing in the core reads it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import torch

import tomecore as tc


def layer(keys, x, size):
    """Every operation of the core that an adapter or a user may trace."""
    plan = tc.bipartite_soft_matching(keys, 3, protected=1)
    mean, sizes = tc.merge_weighted(plan, x, size)
    following = tc.kth_bipartite_soft_matching(mean, 4)
    source = tc.compose(tc.compose(None, plan), following)
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
