"""Law 10: the smallest inputs, odd and even token counts, and r larger than possible."""

from __future__ import annotations

import numpy as np
import pytest

import tomecore as tc
from adapters import explicit

#: image side -> patches: 1, 4, 9, 25, so token counts are even and odd with any prefix
SIDES = [4, 8, 12, 20]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("r", [1, 3, 1000], ids="r={}".format)
@pytest.mark.parametrize("side", SIDES, ids="{}px".format)
def test_any_number_of_tokens(case, side, r, depth):
    fw = case.fw
    model, images = case.model(size=side, depth=depth), case.images(1, size=side)
    n0 = case.num_tokens(side)
    tokens = fw.numpy(fw.tokens(model, images))
    assert tokens.shape[1] == n0
    layers = explicit.run(fw, model.blocks, tokens, [r] * depth, protected=case.prefix)
    unpatched = fw.forward(model, images)
    fw.tome.apply_patch(model, r=r, trace_source=True)
    output = fw.forward(model, images)
    assert output.shape == unpatched.shape
    assert np.isfinite(output).all()
    assert model.tome.tokens == tc.tokens_per_layer(depth, r, n0, protected=case.prefix)
    assert np.array_equal(fw.numpy(model.tome.sizes), layers[-1].sizes)
    assert np.array_equal(fw.numpy(model.tome.source), layers[-1].source)
    if model.tome.tokens[-1] == n0:
        assert np.array_equal(output, unpatched)


def test_a_batch_of_one_is_the_first_of_a_batch(case):
    model = case.patched(r=8, trace_source=True)
    images = case.images(3)
    together = case.fw.forward(model, images)
    sizes = case.fw.numpy(model.tome.sizes)
    alone = case.fw.forward(model, images[:1])
    np.testing.assert_allclose(alone, together[:1], rtol=0, atol=1e-12 * np.abs(together).max())
    assert np.array_equal(case.fw.numpy(model.tome.sizes), sizes[:1])


def test_r_too_large_keeps_half_in_each_layer_and_never_the_prefix(case):
    model = case.patched(r=10**6)
    case.fw.forward(model, case.images())
    tokens = [case.num_tokens()]
    for after in model.tome.tokens:
        assert after == tokens[-1] - (tokens[-1] - case.prefix) // 2
        tokens.append(after)
