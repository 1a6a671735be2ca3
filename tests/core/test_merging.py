"""The operations of a plan on tokens: merging, unmerging, sizes, following tokens, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from libraries import LIBRARIES

import tomecore as tc


@pytest.fixture(params=["bipartite", "protected", "kth", "random"])
def pair(request, library, rng):
    """A plan over 2 x 13 tokens and the reference's plan of each sample."""
    keys = rng.normal(size=(2, 13, 6))
    array = library.to_array(keys)
    permutation = np.random.default_rng(5).permutation(13).tolist()
    return {
        "bipartite": lambda: (
            tc.bipartite_soft_matching(array, 5),
            [reference.bipartite(one, 5) for one in keys],
        ),
        "protected": lambda: (
            tc.bipartite_soft_matching(array, 5, protected=2),
            [reference.bipartite(one, 5, 2) for one in keys],
        ),
        "kth": lambda: (
            tc.kth_bipartite_soft_matching(array, 3),
            [reference.kth(one, 3) for one in keys],
        ),
        "random": lambda: (
            tc.random_bipartite_soft_matching(array, 8, seed=5),
            [reference.random(one, 8, permutation) for one in keys],
        ),
    }[request.param]()


def identity(library, batch=2, tokens=5):
    return tc.bipartite_soft_matching(library.to_array(np.ones((batch, tokens, 3))), 0)


def crowd(library, tokens=4):
    """A plan of one sample whose tokens all merge into one slot, except for the last."""
    kept, merged, into = [0, tokens - 1], list(range(1, tokens - 1)), [0] * (tokens - 2)
    return tc.MergePlan(*(library.to_array(np.array([one])) for one in (kept, merged, into)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "amax"])
def test_merge(pair, library, rng, reduce, dtype):
    plan, expected = pair
    x = rng.normal(size=(2, 13, 7)).astype(dtype)
    name = reduce.removeprefix("a")
    for found in (
        plan.merge(library.to_array(x), reduce),
        plan.merge(library.to_array(x), reduce=reduce),
        plan.merge(library.to_array(x), mode=reduce),
    ):
        assert str(found.dtype).endswith(dtype)
        np.testing.assert_allclose(
            library.to_numpy(found),
            [reference.merge(one, values, name) for one, values in zip(expected, x, strict=True)],
            rtol=1e-12 if dtype == "float64" else 1e-5,
            atol=1e-13 if dtype == "float64" else 1e-6,
        )


def test_mean_is_the_default_and_counts_the_destination(library):
    plan = crowd(library)
    x = library.to_array(np.array([[[1.0], [2.0], [6.0], [50.0]]]))
    assert library.to_numpy(plan.merge(x)).ravel().tolist() == [3.0, 50.0]


def test_integers_can_be_summed_and_compared(library):
    plan = crowd(library)
    x = library.to_array(np.array([[[1], [2], [6], [50]]]))
    for reduce, expected in (("sum", [9, 50]), ("max", [6, 50])):
        merged = plan.merge(x, reduce)
        assert str(merged.dtype).endswith("int64")
        assert library.to_numpy(merged).ravel().tolist() == expected


def test_unmerge(pair, library, rng):
    plan, expected = pair
    y = rng.normal(size=(2, plan.num_slots, 7))
    np.testing.assert_array_equal(
        library.to_numpy(plan.unmerge(library.to_array(y))),
        [reference.unmerge(one, values) for one, values in zip(expected, y, strict=True)],
    )


def test_slots_are_the_inverse_of_kept_merged_and_into(pair, library):
    plan, _ = pair
    kept, merged, into, slots = (
        library.to_numpy(array) for array in (plan.kept, plan.merged, plan.into, plan.slots)
    )
    own = np.broadcast_to(np.arange(plan.num_slots), kept.shape)
    np.testing.assert_array_equal(np.take_along_axis(slots, kept, axis=1), own)
    np.testing.assert_array_equal(np.take_along_axis(slots, merged, axis=1), into)
    everything = np.sort(np.concatenate([kept, merged], axis=1), axis=1)
    np.testing.assert_array_equal(everything, np.broadcast_to(np.arange(13), (2, 13)))
    assert plan.slots is plan.slots


def test_a_plan_unpacks_as_tomes_two_functions(pair, library, rng):
    plan, _ = pair
    merge, unmerge = plan
    x = library.to_array(rng.normal(size=(2, 13, 3)))
    merged = merge(x, mode="sum")
    for found, expected in (
        (merged, plan.merge(x, "sum")),
        (unmerge(merged), plan.unmerge(merged)),
    ):
        np.testing.assert_array_equal(library.to_numpy(found), library.to_numpy(expected))


def test_repr_says_what_it_does(library):
    assert repr(crowd(library)) == f"MergePlan(4 -> 2 tokens, batch 1, {library.name})"


def test_identity_plan(library, rng):
    plan = identity(library)
    assert (plan.num_tokens, plan.num_slots, plan.num_merged) == (5, 5, 0)
    numbers = np.broadcast_to(np.arange(5), (2, 5))
    np.testing.assert_array_equal(library.to_numpy(plan.kept), numbers)
    np.testing.assert_array_equal(library.to_numpy(plan.slots), numbers)
    assert library.to_numpy(plan.merged).shape == library.to_numpy(plan.into).shape == (2, 0)
    x = rng.normal(size=(2, 5, 3))
    array = library.to_array(x)
    for found in (
        plan.merge(array),
        plan.merge(array, "sum"),
        plan.merge(array, "max"),
        plan.unmerge(array),
    ):
        np.testing.assert_array_equal(library.to_numpy(found), x)
    size = library.to_array(np.array([[1.0, 2, 3, 4, 5]] * 2))
    mean, merged = tc.merge_weighted(plan, array, size)
    np.testing.assert_array_equal(library.to_numpy(mean), x)
    np.testing.assert_array_equal(library.to_numpy(merged), library.to_numpy(size))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sized", [False, True], ids=["first layer", "with sizes"])
def test_merge_weighted(pair, library, rng, sized, dtype):
    plan, expected = pair
    x = rng.normal(size=(2, 13, 7)).astype(dtype)
    size = rng.integers(1, 9, size=(2, 13)) if sized else np.ones((2, 13))
    given = library.to_array(size.astype("float32")) if sized else None
    mean, merged = tc.merge_weighted(plan, library.to_array(x), given)
    assert str(mean.dtype).endswith(dtype)
    assert str(merged.dtype).endswith("float32")
    wanted = [reference.merge_weighted(*one) for one in zip(expected, x, size, strict=True)]
    np.testing.assert_array_equal(library.to_numpy(merged), [sizes for _, sizes in wanted])
    assert (library.to_numpy(merged).sum(axis=1) == size.sum(axis=1)).all()
    np.testing.assert_allclose(
        library.to_numpy(mean),
        [means for means, _ in wanted],
        rtol=1e-12 if dtype == "float64" else 1e-5,
        atol=1e-13 if dtype == "float64" else 1e-6,
    )


def test_weights_by_hand(library):
    plan = crowd(library)
    x = library.to_array(np.array([[[1.0], [2.0], [6.0], [50.0]]]))
    size = library.to_array(np.array([[5.0, 2.0, 1.0, 9.0]], dtype="float32"))
    mean, merged = tc.merge_weighted(plan, x, size)
    np.testing.assert_allclose(library.to_numpy(mean).ravel(), [15 / 8, 50.0], rtol=1e-15)
    assert library.to_numpy(merged).ravel().tolist() == [8.0, 9.0]


@pytest.mark.parametrize("dtype", ["int64", "float32", "float64"])
def test_sizes_are_float32_whatever_they_come_in(library, dtype):
    plan = crowd(library)
    x = library.to_array(np.ones((1, 4, 2)))
    size = library.to_array(np.array([[256, 1, 1, 1]], dtype=dtype))
    mean, merged = tc.merge_weighted(plan, x, size)
    assert str(merged.dtype).endswith("float32")
    assert library.to_numpy(merged).tolist() == [[258.0, 1.0]]
    np.testing.assert_allclose(library.to_numpy(mean), np.ones((1, 2, 2)), rtol=1e-15)


@pytest.mark.parametrize("sized", [None, torch.bfloat16, torch.float32], ids=str)
def test_half_precision_counts_beyond_256(sized):
    """257 does not exist in bfloat16; the sizes have it."""
    tokens = 300 if sized is None else 3
    plan = crowd(LIBRARIES["torch"], tokens)
    x = torch.ones(1, tokens, 4, dtype=torch.bfloat16)
    size = None if sized is None else torch.tensor([[256, 1, 1]], dtype=sized)
    mean, merged = tc.merge_weighted(plan, x, size)
    assert mean.dtype == torch.bfloat16
    assert merged.dtype == torch.float32
    assert merged.tolist() == ([[299.0, 1.0]] if sized is None else [[257.0, 1.0]])
    torch.testing.assert_close(mean, torch.ones_like(mean))
    assert plan.merge(x, "mean").float().eq(1).all()


def test_half_precision_does_not_overflow():
    """500 x 200 tokens is beyond float16; a weight above 1 would make it infinite."""
    x = np.full((1, 4, 3), 500.0, dtype="float16")
    size = np.array([[200.0, 150.0, 50.0, 1.0]], dtype="float32")
    numbers = (np.array([[0, 3]]), np.array([[1, 2]]), np.array([[0, 0]]))
    for to_array, float16 in ((np.asarray, np.float16), (torch.tensor, torch.float16)):
        plan = tc.MergePlan(*map(to_array, numbers))
        mean, merged = tc.merge_weighted(plan, to_array(x), to_array(size))
        assert mean.dtype == float16
        assert np.asarray(mean).tolist() == [[[500.0] * 3] * 2]
        assert merged.tolist() == [[400.0, 1.0]]
        high = to_array(np.full((1, 4, 3), 60000.0, dtype="float16"))
        assert np.asarray(plan.merge(high, "mean")).tolist() == [[[60000.0] * 3] * 2]
        for reduce in ("sum", "mean", "max"):
            assert plan.merge(to_array(x), reduce).dtype == float16


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_half_precision_sums_are_accumulated_in_float32(name):
    """3000 ones, added one by one in float16, would stop at 2048."""
    library = LIBRARIES[name]
    x = library.to_array(np.ones((1, 3001, 2), dtype="float16"))
    total = crowd(library, 3001).merge(x, "sum")
    assert str(total.dtype).endswith("float16")
    assert library.to_numpy(total).tolist() == [[[3000.0] * 2, [1.0] * 2]]


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_half_precision_means_are_rounded_once(name, rng):
    """To the number that the exact mean would be rounded to."""
    library = LIBRARIES[name]
    x = rng.normal(size=(1, 500, 8)).astype("float16")
    size = rng.integers(1, 100, size=(1, 500)).astype("float32")
    plan = crowd(library, 500)
    mean, _ = tc.merge_weighted(plan, library.to_array(x), library.to_array(size))
    exact = np.average(x[0, :499].astype("float64"), axis=0, weights=size[0, :499])
    np.testing.assert_array_equal(library.to_numpy(mean)[0, 0], exact.astype("float16"))


@pytest.mark.parametrize("protected", [0, 1])
def test_following_tokens_over_layers(library, rng, protected):
    """Four layers: sizes, means and sources are those of the loops, and agree with each other."""
    x = rng.normal(size=(2, 40, 5))
    tokens, size, source = library.to_array(x), None, None
    expected = [(one, np.ones(40), list(range(40))) for one in x]
    for r in (12, 0, 7, 5):
        keys = rng.normal(size=(2, tokens.shape[1], 4))
        plan = tc.bipartite_soft_matching(library.to_array(keys), r, protected=protected)
        tokens, size = tc.merge_weighted(plan, tokens, size)
        source = tc.compose(source, plan)
        for b, (one, one_size, one_source) in enumerate(expected):
            one_plan = reference.bipartite(keys[b], r, protected)
            expected[b] = (
                *reference.merge_weighted(one_plan, one, one_size),
                reference.compose(one_source, one_plan),
            )
    found, sizes, sources = map(library.to_numpy, (tokens, size, source))
    assert found.shape == (2, 16, 5)
    np.testing.assert_array_equal(sources, [one_source for _, _, one_source in expected])
    np.testing.assert_array_equal(sizes, [one_size for _, one_size, _ in expected])
    np.testing.assert_allclose(found, [one for one, _, _ in expected], rtol=1e-11, atol=1e-12)
    for b in range(2):
        np.testing.assert_array_equal(np.bincount(sources[b], minlength=16), sizes[b])
        for slot in range(16):
            mean = x[b, sources[b] == slot].mean(axis=0)
            np.testing.assert_allclose(found[b, slot], mean, rtol=1e-11, atol=1e-12)


def test_compose_starts_from_the_slots(pair, library):
    plan, _ = pair
    np.testing.assert_array_equal(
        library.to_numpy(tc.compose(None, plan)), library.to_numpy(plan.slots)
    )


def finite_differences(function, x, step=1e-6):
    """d function(x) / dx by central differences; ``function`` maps NumPy to a float."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.mark.parametrize("operation", ["sum", "mean", "max", "weighted", "sized", "unmerge"])
def test_gradients(differentiable, rng, operation):
    library = differentiable
    keys = library.to_array(rng.normal(size=(2, 9, 4)))
    plan = tc.bipartite_soft_matching(keys, 3, protected=1)
    before, after = plan.num_tokens, plan.num_slots
    if operation == "unmerge":
        before, after = after, before
    x = rng.normal(size=(2, before, 3))
    size = library.to_array(rng.integers(1, 6, size=(2, 9)).astype("float32"))
    weights = library.to_array(rng.normal(size=(2, after, 3)))
    function = {
        "unmerge": plan.unmerge,
        "weighted": lambda x: tc.merge_weighted(plan, x)[0],
        "sized": lambda x: tc.merge_weighted(plan, x, size)[0],
    }.get(operation, lambda x: plan.merge(x, operation))

    def weighed(x):
        return function(x) * weights

    np.testing.assert_allclose(
        library.gradient(weighed, x),
        finite_differences(lambda x: library.to_numpy(weighed(library.to_array(x))).sum(), x),
        rtol=1e-7,
        atol=1e-8,
    )


def test_gradients_reach_what_a_model_merges(differentiable, rng):
    """The keys come from the tokens: gradients flow through the merge and not through the choice."""
    library = differentiable

    def layer(x):
        return tc.merge_weighted(tc.bipartite_soft_matching(x, 3), x)[0]

    x = rng.normal(size=(2, 8, 4))
    frozen = tc.bipartite_soft_matching(library.to_array(x), 3)
    expected = library.gradient(lambda x: tc.merge_weighted(frozen, x)[0], x)
    np.testing.assert_array_equal(library.gradient(layer, x), expected)
    slots = library.to_numpy(frozen.slots)
    sizes = np.stack([np.bincount(one)[one] for one in slots])
    np.testing.assert_allclose(expected, np.broadcast_to(1 / sizes[:, :, None], x.shape), rtol=1e-6)
