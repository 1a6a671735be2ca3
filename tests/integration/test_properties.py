"""Properties that hold for any shape, any number of protected tokens and any r, on every library."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import LIBRARIES

import tomecore as tc
from tomecore import schedule
from tomecore.errors import ArgumentValueError
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic

settings.register_profile("tomecore", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("tomecore")

batches = st.integers(1, 3)
counts = st.integers(1, 24)
protections = st.integers(0, 6)
amounts = st.integers(0, 30)
seeds = st.integers(0, 2**32 - 1)
libraries = st.sampled_from(list(LIBRARIES.values()))


@st.composite
def plans(draw):
    """(library, keys, plan, reference's plans): any algorithm on any library."""
    library = draw(libraries)
    kind = draw(st.sampled_from(["bipartite", "kth", "random", "partition"]))
    shape = draw(batches), draw(counts), draw(st.integers(2, 5))
    keys = np.random.default_rng(draw(seeds)).normal(size=shape)
    array, amount = library.to_array(keys), draw(amounts)
    protected = draw(protections)
    if kind == "bipartite":
        plan = tc.bipartite_soft_matching(array, amount, protected=protected)
        expected = [reference.bipartite(one, amount, protected) for one in keys]
    elif kind == "kth":
        plan = tc.kth_bipartite_soft_matching(array, amount, protected=protected)
        expected = [reference.kth(one, amount, protected) for one in keys]
    elif kind == "random":
        seed = draw(seeds)
        plan = tc.random_bipartite_soft_matching(array, amount, seed=seed, protected=protected)
        free = max(0, shape[1] - protected)
        permutation = np.random.default_rng(seed).permutation(free).tolist()
        expected = [reference.random(one, amount, permutation, protected) for one in keys]
    else:
        (sources, destinations), r, chunk = draw(numbers(1, shape[1]))
        plan = tc.partition_matching(array, sources[0], destinations[0], r, chunk=chunk)
        lists = sources[0].tolist(), destinations[0].tolist()
        expected = [reference.partition(one, *lists, r) for one in keys]
    return library, keys, plan, expected


@st.composite
def numbers(draw, batch, tokens):
    """((sources, destinations), r, chunk): a partition for each sample, in any order, not of all tokens."""
    kept = draw(st.integers(0, tokens))
    merging = draw(st.integers(0, tokens - kept)) if kept else 0
    rows = np.array([draw(st.permutations(range(tokens))) for _ in range(batch)], dtype="int64")
    r = draw(st.none() | st.integers(0, merging))
    chunk = draw(st.none() | st.integers(1, merging + 2))
    return (rows[:, :merging], rows[:, merging : merging + kept]), r, chunk


#: keys whose units and products are exact in any order of summation, with many ties, opposites and zeros
EXACT = np.concatenate(
    [np.eye(4), -4 * np.eye(4), np.ones((1, 4)), 0.5 - np.eye(4)[:2], np.zeros((1, 4))]
)


@given(st.data(), libraries, batches, counts, seeds)
def test_a_partition_with_ties_is_the_references(data, library, batch, tokens, seed):
    """In any chunk, on token numbers of any kind, the first of equal sources and destinations is chosen."""
    keys = EXACT[np.random.default_rng(seed).integers(0, len(EXACT), (batch, tokens))]
    keys = keys.astype(data.draw(st.sampled_from(["float32", "float64"])))
    sides, r, chunk = data.draw(numbers(batch, tokens))
    given, lists = [], []
    for side in sides:
        if data.draw(st.booleans()):  # one for the batch
            side = np.array([side[0]] * batch)
            shown = side[0]
        else:
            shown = side
        if data.draw(st.booleans()):
            kind = data.draw(st.sampled_from(["int32", "int64"]))
            shown = library.to_array(shown.astype(kind))
        given.append(shown)
        lists.append(side.tolist())
    if any(
        set(a) & set(b) for a, b in zip(*lists, strict=True)
    ):  # of two rows, where one is shared
        with pytest.raises(ArgumentValueError, match="must not overlap"):
            tc.partition_matching(library.to_array(keys), *given, r, chunk=chunk)
        return
    plan = tc.partition_matching(library.to_array(keys), *given, r, chunk=chunk)
    expected = [reference.partition(one, a, b, r) for one, a, b in zip(keys, *lists, strict=True)]
    for name in ("kept", "merged", "into"):
        wanted = np.array([getattr(one, name) for one in expected]).reshape(batch, -1)
        np.testing.assert_array_equal(library.to_numpy(getattr(plan, name)), wanted)


@given(st.data(), libraries, batches, counts, seeds)
def test_the_chunk_does_not_change_a_plan(data, library, batch, tokens, seed):
    keys = library.to_array(np.random.default_rng(seed).normal(size=(batch, tokens, 3)))
    sides, r, chunk = data.draw(numbers(batch, tokens))
    sides = [library.to_array(side) for side in sides]
    whole = tc.partition_matching(keys, *sides, r, chunk=tokens)
    parts = tc.partition_matching(keys, *sides, r, chunk=chunk)
    for name in ("kept", "merged", "into"):
        one, other = (library.to_numpy(getattr(plan, name)) for plan in (whole, parts))
        np.testing.assert_array_equal(one, other)


@given(plans())
def test_a_plan_is_the_references(case):
    library, _, plan, expected = case
    for name in ("kept", "merged", "into"):
        wanted = [getattr(one, name) for one in expected]
        np.testing.assert_array_equal(library.to_numpy(getattr(plan, name)), wanted)


@given(plans())
def test_a_plan_is_a_permutation(case):
    """Every token is kept or merged, once; every slot a token goes to exists."""
    library, keys, plan, _ = case
    kept, merged, into = map(library.to_numpy, (plan.kept, plan.merged, plan.into))
    everything = np.sort(np.concatenate([kept, merged], axis=1), axis=1)
    np.testing.assert_array_equal(
        everything, np.broadcast_to(np.arange(keys.shape[1]), everything.shape)
    )
    assert ((into >= 0) & (into < plan.num_slots)).all()
    assert plan.num_slots >= 1


@given(plans(), seeds)
def test_sizes_sum_to_the_number_of_tokens(case, seed):
    library, keys, plan, _ = case
    size = np.random.default_rng(seed).integers(1, 1000, size=keys.shape[:2])
    given = library.to_array(size.astype("float32"))
    merged = library.to_numpy(tc.merge_weighted(plan, library.to_array(keys), given)[1])
    np.testing.assert_array_equal(merged.sum(axis=1), size.sum(axis=1))
    ones = library.to_numpy(tc.merge_weighted(plan, library.to_array(keys))[1])
    np.testing.assert_array_equal(ones.sum(axis=1), np.full(len(keys), keys.shape[1]))


@given(plans())
def test_unmerge_gives_each_token_what_its_slot_holds(case):
    library, keys, plan, _ = case
    merged = plan.merge(library.to_array(keys), "mean")
    back = library.to_numpy(plan.unmerge(merged))
    slots, values = library.to_numpy(plan.slots), library.to_numpy(merged)
    np.testing.assert_array_equal(back, np.take_along_axis(values, slots[:, :, None], axis=1))
    again = library.to_numpy(plan.merge(plan.unmerge(merged), "mean"))
    np.testing.assert_allclose(again, values, rtol=1e-12, atol=1e-14)


@given(plans())
def test_a_sum_loses_nothing_and_a_mean_stays_between(case):
    library, keys, plan, _ = case
    x = library.to_array(keys)
    total = library.to_numpy(plan.merge(x, "sum")).sum(axis=1)
    np.testing.assert_allclose(total, keys.sum(axis=1), rtol=1e-11, atol=1e-12)
    mean = library.to_numpy(tc.merge_weighted(plan, x)[0])
    assert (mean <= keys.max(axis=1, keepdims=True) + 1e-12).all()
    assert (mean >= keys.min(axis=1, keepdims=True) - 1e-12).all()
    highest = library.to_numpy(plan.merge(x, "max")).max(axis=1)
    np.testing.assert_array_equal(highest, keys.max(axis=1))


@given(batches, counts, protections, amounts, seeds)
def test_all_libraries_decide_alike(batch, tokens, protected, r, seed):
    keys = np.random.default_rng(seed).normal(size=(batch, tokens, 6))
    found = {}
    for library in LIBRARIES.values():
        plan = tc.bipartite_soft_matching(library.to_array(keys), r, protected=protected)
        arrays = (plan.kept, plan.merged, plan.into, plan.slots)
        found[library.name] = [library.to_numpy(array).tolist() for array in arrays]
    assert found["numpy"] == found["torch"] == found["paddle"]


@given(counts, protections, st.lists(amounts, min_size=1, max_size=5), seeds)
def test_tokens_per_layer_is_what_the_layers_do(tokens, protected, r, seed):
    rng, x = np.random.default_rng(seed), np.zeros((1, tokens, 3))
    source = None
    for amount, after in zip(r, tc.tokens_per_layer(len(r), r, tokens, protected), strict=True):
        keys = rng.normal(size=(1, x.shape[1], 3))
        plan = tc.bipartite_soft_matching(keys, amount, protected=protected)
        x, source = plan.merge(x), tc.compose(source, plan)
        assert x.shape[1] == plan.num_slots == after
        assert sorted(set(source[0].tolist())) == list(range(after))


@given(st.integers(1, 30), st.integers(0, 50), st.floats(-1, 1))
def test_a_line_starts_where_it_should_and_merges_as_many(num_layers, r, inflect):
    """Truncation loses less than one token per layer."""
    numbers = tc.parse_r(num_layers, (r, inflect))
    assert len(numbers) == num_layers
    assert min(numbers) >= 0
    assert r * num_layers - num_layers < sum(numbers) <= r * num_layers
    assert numbers == sorted(numbers, reverse=inflect < 0) or len(set(numbers)) == 1


ratios = st.floats(0.5, 1)
layers = st.integers(1, 30)


@given(ratios, layers, counts, protections)
def test_a_ratio_keeps_its_share_in_every_layer(ratio, num_layers, tokens, protected):
    wish = schedule.Ratio(ratio)
    amounts = wish(num_layers, tokens, protected)
    after = tc.tokens_per_layer(num_layers, wish, tokens, protected)
    assert len(amounts) == num_layers
    assert tokens - sum(amounts) == after[-1]  # nothing is clamped
    for before, now in zip([tokens, *after], after, strict=False):
        free = max(0, before - protected)
        assert abs((now - before + free) - ratio * free) <= 0.5 + 1e-9


@given(ratios, ratios, layers, counts, protections)
def test_a_smaller_ratio_never_leaves_more_tokens(one, other, num_layers, tokens, protected):
    low, high = (
        tc.tokens_per_layer(num_layers, schedule.Ratio(ratio), tokens, protected)
        for ratio in sorted((one, other))
    )
    assert all(a <= b for a, b in zip(low, high, strict=True))


@given(layers, st.integers(1, 300), protections, st.data())
def test_every_number_of_tokens_that_merging_can_leave_is_met_evenly(
    num_layers, tokens, protected, data
):
    least = tc.tokens_per_layer(num_layers, tokens, tokens, protected)[-1]
    last = data.draw(st.integers(least, tokens))
    amounts = schedule.ForTokens(last)(num_layers, tokens, protected)
    assert tc.tokens_per_layer(num_layers, amounts, tokens, protected)[-1] == last
    assert tokens - sum(amounts) == last  # nothing is clamped
    left = tokens
    for amount in amounts:  # even, except for layers that merge all they can
        assert amount >= max(amounts) - 1 or amount == max(0, left - protected) // 2
        left -= amount
    free = [amount for amount in amounts if amount >= max(amounts) - 1]
    assert free == sorted(free, reverse=True) or len(free) < num_layers


@given(layers, st.integers(2, 300), st.integers(0, 1), st.floats(1, 20))
def test_a_speedup_is_reached_or_impossible(num_layers, tokens, protected, speedup):
    layer = LayerArithmetic(4 * 64**2, 8 * 64**2, 64)
    arithmetic = Arithmetic((layer,) * num_layers, protected, 768 * 64, 0, 640)
    wish = schedule.ForSpeedup(speedup, arithmetic)
    if arithmetic.limit(tokens, tokens) < speedup:
        with pytest.raises(ArgumentValueError, match="times faster"):
            wish(num_layers, tokens, protected)
    else:
        assert arithmetic.limit(tokens, wish) >= speedup * (1 - 1e-12)
