"""Rotary tables and position biases of merged tokens, against loops, in both frameworks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.frameworks import PADDLE, TORCH
from tomecore.adapters.engine.positions import merge_position_bias, merge_rotary_table
from tomecore.adapters.engine.state import ForwardInfo, MergeHistory, TokenState
from tomecore.errors import UnsupportedModelError

#: two samples of 7 tokens in 4 slots, the first never merged; the last token of the second is padding
SOURCE = np.array([[0, 1, 1, 2, 3, 2, 2], [0, 3, 2, 3, 1, 1, 1]])
VALID = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]], dtype="float32")
ENTRY = ForwardInfo(num_tokens=7, batch=2, device=None, number=1, keep_all=False)


class Known(MergeHistory):
    """A history whose end is known."""

    weighted = False

    def __init__(self, source):
        self.known = source


@pytest.fixture(params=[TORCH, PADDLE], ids=lambda fw: fw.name)
def fw(request):
    return request.param


def run_of(fw, padded: bool = False) -> TokenState:
    valid = VALID if padded else np.ones_like(VALID)
    sizes = np.stack(
        [np.bincount(s, weights=v, minlength=4) for s, v in zip(SOURCE, valid, strict=True)]
    )
    return TokenState(
        ENTRY,
        None,
        width=4,
        sizes=fw.tensor(sizes.astype("float32")),
        history=Known(fw.tensor(SOURCE)),
        valid=fw.tensor(valid) if padded else None,
    )


def mean_of_groups(rows: np.ndarray, padded: bool) -> np.ndarray:
    """Compute rows (2, 7, ...) -> (2, 4, ...), in loops."""
    out = np.zeros((2, 4, *rows.shape[2:]))
    for b in range(2):
        for slot in range(4):
            group = [i for i in range(7) if SOURCE[b, i] == slot and (VALID[b, i] or not padded)]
            out[b, slot] = np.mean([rows[b, i] for i in group], axis=0)
    return out


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "padded"])
@pytest.mark.parametrize("shape", [(6, 8), (2, 1, 6, 8), (3, 6, 8), (2, 3, 6, 8)], ids=str)
def test_tables_are_averaged_over_groups(fw, rng, shape, padded):
    """Six rows: the class token has none."""
    table = rng.standard_normal(shape)
    full = np.broadcast_to(table, (2, 3 if shape[-3:-2] == (3,) else 1, 6, 8))
    rows = np.concatenate(
        [np.zeros((2, 1, *full.shape[1:2], 8)), full.transpose(0, 2, 1, 3)], axis=1
    )
    expected = mean_of_groups(rows, padded)[:, 1:].transpose(0, 2, 1, 3)
    got = merge_rotary_table(fw.tome.HOST, fw.tensor(table), run_of(fw, padded))
    np.testing.assert_allclose(fw.numpy(got), expected, rtol=0, atol=1e-6)
    assert fw.numpy(got).dtype == np.float64


def test_half_precision_tables_are_summed_in_float32():
    """A group of 300: in bfloat16 a sum of 300 equal terms would stop growing half way."""
    table = torch.full((301, 4), 0.7, dtype=torch.bfloat16)
    source = torch.tensor([[*[0] * 300, 1]])
    entry = ForwardInfo(num_tokens=301, batch=1, device=None, number=1, keep_all=False)
    run = TokenState(
        entry, None, width=2, sizes=torch.tensor([[300.0, 1.0]]), history=Known(source)
    )
    got = merge_rotary_table(TORCH.tome.HOST, table, run)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, table[:2][None, None])


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "padded"])
@pytest.mark.parametrize("batch", [1, 2])
def test_biases_are_averaged_as_exponentials(fw, rng, batch, padded):
    bias = 3 * rng.standard_normal((batch, 3, 7, 7))
    weights = np.broadcast_to(np.exp(bias), (2, 3, 7, 7))
    rows = mean_of_groups(weights.transpose(0, 2, 1, 3), padded)
    both = mean_of_groups(rows.transpose(0, 3, 1, 2), padded)  # column, row, ...
    expected = np.log(both).transpose(0, 3, 2, 1)
    got = fw.numpy(merge_position_bias(fw.tome.HOST, fw.tensor(bias), run_of(fw, padded)))
    assert got.shape == (2, 3, 4, 4)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_biases_of_any_size_stay_finite(fw, rng):
    bias = rng.choice([-np.inf, -1e30, -500.0, 0.0, 500.0], (1, 2, 7, 7)).astype("float32")
    got = fw.numpy(merge_position_bias(fw.tome.HOST, fw.tensor(bias), run_of(fw)))
    assert np.isfinite(got).all()
    assert got.dtype == np.float32


def test_before_anything_has_merged_nothing_changes(fw, rng):
    run = TokenState(ENTRY, None, width=7)
    bias = fw.tensor(rng.standard_normal((1, 3, 7, 7)))
    assert merge_position_bias(fw.tome.HOST, bias, run) is bias
    assert merge_rotary_table(fw.tome.HOST, bias, run) is bias


def test_a_bias_of_other_tokens_is_refused(fw, rng):
    bias = fw.tensor(rng.standard_normal((1, 3, 9, 9)))
    text = r"shape \(1, 3, 9, 9\) does not describe the 7 tokens that entered the first block"
    with pytest.raises(UnsupportedModelError, match=text):
        merge_position_bias(fw.tome.HOST, bias, run_of(fw))


def attention(q, k, v, bias):
    scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]) + bias)
    return scores / scores.sum(-1, keepdims=True) @ v


def test_merged_attention_is_nearest_with_the_mean_of_exponentials(fw, rng):
    """Near-duplicate neighbours on an 8 x 8 grid with random biases by relative position."""
    y, x = np.divmod(np.arange(64), 8)
    errors = {"here": [], "mean": [], "destination": []}
    source = np.repeat(np.arange(32), 2)[None]
    run = TokenState(
        ForwardInfo(num_tokens=64, batch=1, device=None, number=1, keep_all=False),
        None,
        width=32,
        sizes=fw.tensor(np.full((1, 32), 2.0, dtype="float32")),
        history=Known(fw.tensor(source)),
    )

    def halve(a):
        return (a[0::2] + a[1::2]) / 2

    for _ in range(10):
        q, k, v = rng.standard_normal((3, 64, 16))
        for a in (q, k, v):
            a[1::2] = a[0::2] + 0.1 * rng.standard_normal((32, 16))
        bias = rng.standard_normal((15, 15))[y[:, None] - y + 7, x[:, None] - x + 7]
        forms = {
            "here": fw.numpy(merge_position_bias(fw.tome.HOST, fw.tensor(bias[None, None]), run))[
                0, 0
            ],
            "mean": halve(halve(bias).T).T,
            "destination": bias[1::2, 1::2],
        }
        want = halve(attention(q, k, v, bias))
        for name, form in forms.items():
            got = attention(halve(q), halve(k), halve(v), form)
            errors[name].append(np.abs(got - want).mean())
    here, mean, destination = (np.mean(errors[name]) for name in ("here", "mean", "destination"))
    assert here < 0.5 * mean < 0.5 * destination
