"""Padding: it merges first, weighs nothing, and real tokens do not merge into it."""

from __future__ import annotations

import numpy as np
import pytest

import tomecore as tc
from tomecore.errors import ArgumentTypeError, ArgumentValueError


def keys_and_valid(rng, tokens=14, real=(9, 14, 4)):
    keys = rng.normal(size=(len(real), tokens, 6))
    valid = np.arange(tokens)[None, :] < np.array(real)[:, None]
    return keys, valid


@pytest.mark.parametrize("protected", [0, 1])
@pytest.mark.parametrize("r", [1, 3, 6])
def test_padding_goes_first_and_nothing_real_goes_into_it(library, rng, r, protected):
    keys, valid = keys_and_valid(rng)
    plan = tc.bipartite_soft_matching(
        library.to_array(keys), r, protected=protected, valid=library.to_array(valid)
    )
    merged, into, kept = (library.to_numpy(a) for a in (plan.merged, plan.into, plan.kept))
    even = [i for i in range(protected, 14) if i % 2 == 0]
    for b, sample in enumerate(valid):
        pads = [i for i in even if not sample[i]]
        gone = set(merged[b])
        assert gone <= set(pads) if len(pads) >= len(gone) else gone >= set(pads)
        targets = kept[b][into[b]]
        assert all(sample[t] for m, t in zip(merged[b], targets, strict=True) if sample[m])


def test_without_padding_the_plan_is_the_same(library, rng):
    keys, _ = keys_and_valid(rng)
    every = library.to_array(np.ones((3, 14), dtype=bool))
    plans = [
        tc.bipartite_soft_matching(library.to_array(keys), 5, protected=1, valid=valid)
        for valid in (None, every)
    ]
    for name in ("kept", "merged", "into"):
        first, second = (library.to_numpy(getattr(plan, name)) for plan in plans)
        assert np.array_equal(first, second)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_real_tokens_are_what_they_are_without_padding(library, rng, dtype):
    """One long sample, padded, merges like the short one; values in the padding are arbitrary."""
    short = rng.normal(size=(1, 9, 6)).astype(dtype)
    filler = np.full((1, 5, 6), 1e6, dtype=dtype)
    x = np.concatenate([short, filler], axis=1)
    valid = np.arange(14)[None, :] < 9
    alone = tc.bipartite_soft_matching(library.to_array(short), 2, protected=1)
    expected, _ = tc.merge_weighted(alone, library.to_array(short))
    # tokens 10 and 12 are even padding: r counts them, so two real tokens go with r = 4
    plan = tc.bipartite_soft_matching(
        library.to_array(x), 4, protected=1, valid=library.to_array(valid)
    )
    sizes = library.to_array(valid.astype("float32"))
    merged, sizes = tc.merge_weighted(plan, library.to_array(x), sizes)
    merged, sizes = library.to_numpy(merged), library.to_numpy(sizes)
    assert np.isfinite(merged).all()
    assert sizes.sum() == 9
    np.testing.assert_allclose(merged[0][sizes[0] > 0], library.to_numpy(expected)[0], rtol=1e-6)


def test_groups_of_padding_alone_stay_finite(library, rng):
    keys, valid = keys_and_valid(rng, real=(1, 2, 1))
    plan = tc.bipartite_soft_matching(library.to_array(keys), 7, valid=library.to_array(valid))
    x, sizes = tc.merge_weighted(
        plan, library.to_array(keys), library.to_array(valid.astype("float32"))
    )
    assert np.isfinite(library.to_numpy(x)).all()
    assert library.to_numpy(sizes).sum(axis=1).tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    "valid", [np.ones((3, 13), bool), np.ones((3, 14), "int64")], ids=["shape", "dtype"]
)
def test_what_is_no_mask_of_the_tokens(library, rng, valid):
    keys, _ = keys_and_valid(rng)
    text = r"`valid` must be bool with 14 tokens on axis 1, as `keys` has; got .* of shape \(3, 1"
    with pytest.raises(ArgumentValueError, match=text):
        tc.bipartite_soft_matching(library.to_array(keys), 3, valid=library.to_array(valid))
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=r"`valid`.*\(B, N\)"):
        tc.bipartite_soft_matching(library.to_array(keys), 3, valid=library.to_array(valid[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("token", [10, 11])
def test_keys_of_padding_have_no_effect_whatever_they_are(value, token, library):
    """An infinite key would otherwise be the nearest token to all others."""
    keys = np.random.default_rng(0).normal(size=(1, 20, 8))
    valid = np.ones((1, 20), dtype=bool)
    valid[:, token] = False
    slots = []
    for padding in (0.0, value):
        keys[:, token] = padding
        plan = tc.bipartite_soft_matching(
            library.to_array(keys), 9, protected=1, valid=library.to_array(valid)
        )
        slots.append(library.to_numpy(plan.slots))
    np.testing.assert_array_equal(*slots)
