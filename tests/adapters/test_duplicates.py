"""Merging tokens that are equal loses nothing: the law that sees the whole mechanism at once.

If each token has a twin, one merge of all twins must leave every later block's numbers as they were:
the keys reach the matching, sizes reach the attention as log(size), the mean is a mean, and restoring
puts each token back. It needs no knowledge of a block's anatomy.
"""

from __future__ import annotations

import numpy as np
import pytest

from adapters.frameworks import handed_on


def twins(case, pairs: int, seed: int = 0) -> np.ndarray:
    """(2, prefix + 2 * pairs, 32): tokens of the front, then each patch next to its twin."""
    generator = np.random.default_rng(seed)
    front = generator.standard_normal((2, case.prefix, 32))
    patches = np.repeat(generator.standard_normal((2, pairs, 32)), 2, axis=1)
    return np.concatenate([front, patches], axis=1)


def through(case, model, tokens):
    fw = case.fw
    x = fw.tensor(tokens)
    given = case.arguments(model, x)
    for block in case.blocks(model):
        x = handed_on(block(x, **given))
    return fw.numpy(x)


@pytest.mark.parametrize("layer", [0, 1])
def test_merging_twins_changes_nothing(case, layer):
    fw, model, tokens = case.fw, case.model(), twins(case, 32)
    expected = through(case, model, tokens)
    amounts = [0] * layer + [16]  # half of the twins: sizes differ, so attention must know them
    fw.tome.apply_patch(model, r=amounts, prop_attn=True)
    merged = through(case, model, tokens)
    assert model.tome.tokens[-1] == case.prefix + 48
    sizes = np.sort(fw.numpy(model.tome.sizes)[:, case.prefix :])
    assert np.array_equal(sizes, np.tile([1.0] * 32 + [2.0] * 16, (2, 1)))
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    fw.tome.apply_patch(model, prop_attn=False)  # the law sees it when sizes do not reach attention
    wrong = through(case, model, tokens)
    assert not np.allclose(wrong, expected)
