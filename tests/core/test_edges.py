"""Merging at the edges of what numbers can be: the largest ones, infinity, padding that holds anything.

And of what dtypes can be: the other byte order, more precision than float64.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from libraries import LIBRARIES, Library

import tomecore as tc

INF, NAN = math.inf, math.nan

#: values and sizes of the tokens of one slot, in units of the largest number; what their mean is
GROUPS = {
    "opposite": ([1, -1], [1, 1]),
    "opposite, the destination first in size": ([1, -1], [9, 1]),
    "opposite, the destination last in size": ([-1, 1], [1, 9]),
    "many against one": ([-1, 1, 1, 1], [1, 5, 9, 300]),
    "one against many": ([1, -1, -1, -1], [300, 1, 9, 5]),
    "they cancel": ([1, -1, -1, 1], [1, 1, 1, 1]),
    "the largest, three times": ([1, 1, 1], [1, 1, 1]),
    "the smallest, seven times": ([-1] * 7, [1, 2, 3, 4, 5, 6, 7]),
    "inside the range": ([0.25, -0.5, 0.125], [3, 1, 2]),
}

INFINITE = {
    "into infinity": ([INF, 1, -1], [1, 1, 1], INF),
    "infinity into one": ([1, INF], [4, 1], INF),
    "into minus infinity": ([-INF, 1], [1, 9], -INF),
    "twice": ([INF, INF, 0], [1, 2, 1], INF),
    "opposite": ([INF, -INF], [1, 1], NAN),
    "opposite, merged": ([0, INF, -INF], [1, 1, 1], NAN),
    "no number": ([0, NAN], [1, 1], NAN),
    "into no number": ([NAN, 0], [1, 1], NAN),
}

PADDED = {
    "padding of infinity": ([3, INF], [1, 0], 3),
    "padding of no number": ([3, NAN, 5], [1, 0, 1], 4),
    "into padding of infinity": ([INF, 3, 9], [0, 1, 1], 6),
    "into padding of no number": ([NAN, 3], [0, 2], 3),
    "into large padding": ([1e30, 3], [0, 2], 3),
    "padding alone": ([7, INF], [0, 0], 7),
    "sizes below one": ([2, 6], [1e-35, 3e-35], 5),
}


class Wide:
    """A library and a dtype: what its largest number is, and arrays of it."""

    def __init__(self, name, dtype, largest):
        self.library, self.dtype, self.largest = LIBRARIES[name], dtype, largest

    def __repr__(self):
        return f"{self.library.name} {self.dtype}"

    def array(self, values):
        if self.dtype == "bfloat16":
            return torch.tensor(values, dtype=torch.bfloat16)
        return self.library.to_array(np.array(values, dtype=self.dtype))

    def numbers(self, x):
        return np.array(self.library.to_numpy(x.double() if self.dtype == "bfloat16" else x))


def largest(dtype):
    return float(np.finfo(dtype).max)


WIDE = [
    *(Wide(name, dtype, largest(dtype)) for name in LIBRARIES for dtype in ("float32", "float64")),
    *(Wide(name, "float16", largest("float16")) for name in ("numpy", "torch")),
    Wide("torch", "bfloat16", torch.finfo(torch.bfloat16).max),
]


def crowd(library, tokens):
    """Every token but the last, which stays as it is, merges into the first."""
    numbers = [0, tokens - 1], list(range(1, tokens - 1)), [0] * (tokens - 2)
    return tc.MergePlan(*(library.to_array(np.array([one])) for one in numbers))


def mean_of(wide, values, sizes):
    """Return the merge of a slot of these tokens, and a slot next to it."""
    plan = crowd(wide.library, len(values) + 1)
    x = wide.array([[[v, 1.0] for v in [*values, values[0]]]])
    size = wide.library.to_array(np.array([[*sizes, 1]], dtype="float32"))
    with np.errstate(all="ignore"):
        mean, merged = tc.merge_weighted(plan, x, size)
    np.testing.assert_allclose(wide.library.to_numpy(merged)[0, 0], math.fsum(sizes), rtol=1e-6)
    (first, one), (beside, _) = wide.numbers(mean)[0]
    assert one == 1 or not any(sizes)
    np.testing.assert_array_equal(beside, wide.numbers(x)[0, -1, 0])
    return first


@pytest.mark.parametrize(("values", "sizes"), GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_nothing_overflows(wide, values, sizes):
    exact = sum(Fraction(v) * Fraction(s) for v, s in zip(values, sizes, strict=True)) / sum(sizes)
    scaled = [v * wide.largest for v in values]
    coarse = {"float64": 1e-15, "float16": 1e-3, "bfloat16": 8e-3}.get(wide.dtype, 3e-7)
    found = mean_of(wide, scaled, sizes)
    assert abs(Fraction(float(found)) / Fraction(wide.largest) - exact) <= coarse
    if len(set(values)) == 1:
        assert found == scaled[0]


@pytest.mark.parametrize(("values", "sizes", "mean"), INFINITE.values(), ids=INFINITE.keys())
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_infinity_stays_infinite(wide, values, sizes, mean):
    np.testing.assert_equal(mean_of(wide, values, sizes), mean)


@pytest.mark.parametrize(("values", "sizes", "mean"), PADDED.values(), ids=PADDED.keys())
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_what_weighs_nothing_counts_for_nothing(wide, values, sizes, mean):
    if wide.dtype == "float16":
        values = [min(v, wide.largest) for v in values]
    np.testing.assert_allclose(mean_of(wide, values, sizes), mean, rtol=1e-6)


@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_plain_means_do_not_overflow_either(wide):
    for values, mean in (
        ([1, 1, 1], 1),
        ([1, -1], 0),
        ([-1, 1, 1, 1], 0.5),
        ([INF, 1], INF),
        ([1, -INF], -INF),
    ):
        scaled = [v * wide.largest if math.isfinite(v) else v for v in values]
        x = wide.array([[[v] for v in [*scaled, 0]]])
        with np.errstate(all="ignore"):
            found = wide.numbers(crowd(wide.library, len(values) + 1).merge(x))[0, 0, 0]
        np.testing.assert_allclose(found / wide.largest, mean, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_smallest_numbers_are_kept(library: Library, dtype):
    tiny = float(np.finfo(dtype).smallest_normal)
    x = library.to_array(np.array([[[tiny], [3 * tiny], [tiny]]], dtype=dtype))
    found = library.to_numpy(tc.merge_weighted(crowd(library, 3), x)[0])
    np.testing.assert_allclose(found.ravel() / tiny, [2, 1], rtol=1e-6)


def test_gradients_next_to_infinity(differentiable):
    """Those of the finite tokens are what they are elsewhere: their share."""
    library = differentiable
    x = np.array([[[1.0, 2.0], [3.0, INF], [5.0, 6.0]]])
    gradient = library.gradient(lambda x: tc.merge_weighted(crowd(library, 3), x)[0], x)
    np.testing.assert_array_equal(gradient[0, :, 0], [0.5, 0.5, 1])
    assert np.isfinite(gradient).all()


# ---- dtypes


def everything(keys, x, size, source, index):
    """Every public function of the core, on these arrays."""
    plans = [
        tc.bipartite_soft_matching(keys, 3, protected=1),
        tc.bipartite_soft_matching(keys, 4),
        tc.bipartite_soft_matching(keys, 0),
        tc.kth_bipartite_soft_matching(keys, 2),
        tc.random_bipartite_soft_matching(keys, 4),
        tc.partition_matching(keys, index[0][:, :4], index[1], 3, chunk=2),
        tc.MergePlan(*index),
    ]
    for plan in plans:
        yield from (plan.kept, plan.merged, plan.into, plan.slots, tc.compose(source, plan))
        yield from tc.merge_weighted(plan, x, size)
        yield from tc.merge_weighted(plan, x)
        for reduce in ("mean", "sum", "max"):
            yield plan.merge(x, reduce)
        yield plan.unmerge(plan.merge(x))


def arrays(rng, dtype, integer):
    draw = rng.normal(size=(2, 2, 9, 4))
    index = (
        [[0, 2, 4, 6, 7, 8]] * 2,
        [[1, 3, 5]] * 2,
        [[0, 0, 3]] * 2,
    )
    return (
        draw[0].astype(dtype),
        draw[1].astype(dtype),
        rng.integers(1, 5, (2, 9)).astype(dtype),
        rng.integers(0, 9, (2, 11)).astype(integer),
        [np.array(one, dtype=integer) for one in index],
    )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("integer", ["i8", "i4", "u2"])
def test_the_other_byte_order(dtype, integer):
    """The same numbers, to the last bit, in the dtypes that came in."""
    native = arrays(np.random.default_rng(0), dtype, integer)
    swapped = arrays(np.random.default_rng(0), ">" + dtype, ">" + integer)
    for found, expected in zip(everything(*swapped), everything(*native), strict=True):
        assert found.dtype.kind == expected.dtype.kind
        assert found.dtype.itemsize == expected.dtype.itemsize
        np.testing.assert_array_equal(found, expected)


def test_long_double_stays_long_double():
    """If it is longer: numbers that float64 cannot tell apart, and numbers beyond its range."""
    kind = np.finfo(np.longdouble)
    x = np.array([[[1], [1 + 8 * kind.eps], [1]]], dtype=np.longdouble)
    mean, _ = tc.merge_weighted(crowd(LIBRARIES["numpy"], 3), x)
    assert mean.dtype == np.longdouble
    assert mean[0, 0, 0] == 1 + 4 * kind.eps
    huge, _ = tc.merge_weighted(crowd(LIBRARIES["numpy"], 3), np.ldexp(x, kind.maxexp - 2))
    np.testing.assert_array_equal(huge, np.ldexp(mean, kind.maxexp - 2))
