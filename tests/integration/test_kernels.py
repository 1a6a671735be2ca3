"""The compiled kernels against the definition: the same decisions, the same means to rounding.

What they compute is spelled a second time in the calls of a library that ``matching/bipartite.py`` and
``core/merging.py`` make.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KINDS, LAYOUTS, TORCH, Kind, agree, asked, defined, fused, laid

kinds = pytest.mark.parametrize("kind", KINDS, ids=repr)


def check(kind: Kind, key: np.ndarray, r: int, protected: int, *forms: Any, **given: Any) -> None:
    keys, *rest = asked(kind, key, *forms, **given)
    found = fused(keys, *rest, r, protected)
    agree(kind, found, defined(kind, key, *rest, r, protected))


@pytest.mark.parametrize("most", [False, True], ids=["one", "most"])
@pytest.mark.parametrize("count", [7, 8, 13, 40, 197])
@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@kinds
def test_kernels_do_what_the_definition_says(kind, protected, count, most):
    """In every layout, with and without sizes, a source, strides and a batch."""
    r = (count - protected) // 2 if most else 1
    forms = itertools.product(LAYOUTS, (False, True))
    choices = itertools.cycle([(False, False), (True, True), (True, False), (False, True)])
    for (layout, strided), (weighted, composed), batch in zip(
        forms, choices, itertools.cycle([3, 1, 1, 3]), strict=False
    ):
        key = np.random.default_rng(count).standard_normal((batch, count, 3, 8))
        given = {"strided": strided, "weighted": weighted, "composed": composed}
        check(kind, key, r, protected, layout, **given)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.data())
def test_any_shape(data):
    """Combinations of r, protected tokens, heads, layouts and samples."""
    kind, layout = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(LAYOUTS))
    protected = data.draw(st.integers(0, 6))
    count = protected + data.draw(st.integers(2, 30))
    r = data.draw(st.integers(1, (count - protected) // 2))
    shape = data.draw(st.integers(1, 3)), count, data.draw(st.integers(1, 5)), 16
    key = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).standard_normal(shape)
    names = ("strided", "weighted", "composed")
    check(kind, key, r, protected, layout, **{n: data.draw(st.booleans(), n) for n in names})


@pytest.mark.parametrize("protected", [0, 1, 2])
@kinds
def test_ties_go_to_the_first_token(kind, protected):
    """Keys along axes: a similarity is 0 or 1 whatever is rounded, and most tokens are tied."""
    axes = np.random.default_rng(5).integers(0, 4, size=(2, 27))
    key = np.eye(4)[axes][:, :, None, :] * np.array([1, 3])[:, None]
    for r in (1, 6, (27 - protected) // 2):
        check(kind, key, r, protected, weighted=True)


@kinds
def test_all_tokens_alike_and_keys_of_no_length(kind):
    """A similarity of 0 to all; a token in one half among others must come last, not first."""
    key = np.zeros((2, 18, 2, 8))
    check(kind, key, 5, 1)
    key[:, 3:9] = np.abs(np.random.default_rng(1).standard_normal((2, 6, 2, 8)))
    check(kind, key, 5, 1)


@kinds
def test_keys_longer_and_shorter_than_others(kind):
    """Tokens are compared by cosine; squares must not leave the range of float32."""
    key = np.random.default_rng(3).standard_normal((2, 21, 2, 8))
    key *= np.logspace(-10, 15, 21)[None, :, None, None]
    check(kind, key, 6, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@kinds
def test_keys_that_are_no_numbers_leave_a_plan(kind, value):
    """Which tokens merge is then undefined, but every token has a slot."""
    for place in (slice(4, 5), slice(3, 9), slice(None)):
        key = np.random.default_rng(2).standard_normal((2, 23, 2, 8))
        key[:, place] = value
        keys, *rest = asked(kind, key, weighted=True)
        for protected in (0, 1):
            found = fused(keys, *rest, 7, protected)
            tokens, into = kind.to_numpy(found.tokens), kind.to_numpy(found.into)
            np.testing.assert_array_equal(np.sort(tokens, axis=1), np.tile(np.arange(23), (2, 1)))
            assert ((into >= protected) & (into < 16)).all()
            total = kind.to_numpy(rest[1]).sum(axis=1)
            np.testing.assert_array_equal(kind.to_numpy(found.sizes).sum(axis=1), total)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@kinds
def test_activations_that_are_no_numbers_stay_so(kind, value):
    key = np.random.default_rng(2).standard_normal((1, 12, 2, 8))
    keys, x, *rest = asked(kind, key)
    x[0, 5, 3] = value
    found = fused(keys, x, *rest, 3, 1)
    with np.errstate(invalid="ignore"):
        wanted = defined(kind, key, x, *rest, 3, 1)
    np.testing.assert_array_equal(
        np.isfinite(kind.to_numpy(found.x)), np.isfinite(kind.to_numpy(wanted.x))
    )


def test_keys_and_activations_of_two_precisions():
    """As under autocast, whose products are the keys; the similarities stay in float32."""
    half = KINDS[1]
    key = np.random.default_rng(6).standard_normal((2, 41, 3, 8))
    for of_keys, of_x in ((half, TORCH), (TORCH, half)):
        keys, (_, *rest) = laid(of_keys, key, "qkv"), asked(of_x, key, weighted=True)
        wanted = defined(of_keys, key, *rest, 20, 1)
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                agree(of_x, fused(keys, *rest, 20, 1), wanted)
