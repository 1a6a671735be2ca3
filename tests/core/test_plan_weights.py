"""The weights of a plan: means by them, shares of sizes, and means that keep the largest norm."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import reference
import reference_matchings
from libraries import LIBRARIES

import tomecore as tc
from tomecore.errors import ArgumentTypeError, ArgumentValueError

KEPT = [[0, 1, 4, 6], [6, 2, 3, 0]]
MERGED = [[5, 2, 3], [5, 1, 4]]
INTO = [[2, 1, 1], [0, 3, 3]]
WEIGHTS = {
    "none": {},
    "mean": {"mean_weight": True},
    "sizes": {"size_weight": True},
    "both": {"mean_weight": True, "size_weight": True},
    "norm": {"keep_norm": True},
    "all": {"mean_weight": True, "size_weight": True, "keep_norm": True},
}
each_weight = pytest.mark.parametrize("wanted", WEIGHTS.values(), ids=WEIGHTS)


def by_pickle(plan):
    return pickle.loads(pickle.dumps(plan))


def arrays_of(rng, wanted):
    """Weights as NumPy's arrays; some are 0, and a group of image 1 weighs nothing at all."""
    mean, share = rng.random((2, 7)), rng.random((2, 3))
    mean[0, :3] = mean[1, [0, 1, 4]] = share[1, 0] = 0
    found = {"mean_weight": mean, "size_weight": share, "keep_norm": True}
    return {name: found[name] for name in wanted}


def plan_of(library, weights):
    given = {
        name: one if isinstance(one, bool) else library.to_array(one)
        for name, one in weights.items()
    }
    return tc.MergePlan(*(library.to_array(np.array(one)) for one in (KEPT, MERGED, INTO)), **given)


def expected(weights, x, size):
    """The merged tokens and sizes of every image, by the reference."""
    found = []
    for number in range(2):
        plan = reference.Plan(KEPT[number], MERGED[number], INTO[number])
        mean, share = weights.get("mean_weight"), weights.get("size_weight")
        weighted = reference_matchings.Weighted(
            plan,
            None if mean is None else mean[number],
            None if share is None else share[number],
            weights.get("keep_norm", False),
        )
        found.append(reference_matchings.merge(weighted, x[number], size[number]))
    return (np.array([pair[part] for pair in found]) for part in (0, 1))


@each_weight
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sized", ["sizes", "padding", "ones"])
def test_merge_weighted(library, rng, wanted, dtype, sized):
    x, weights = rng.normal(size=(2, 7, 5)), arrays_of(rng, wanted)
    x[:, 1] *= 9  # the largest norm, of a kept token that weighs 0 in the mean
    size = rng.integers(1, 5, size=(2, 7)).astype("float64")
    if sized == "padding":
        size[0, [2, 5]] = size[1, [6, 5]] = 0
    given = None if sized == "ones" else library.to_array(size)
    size = np.ones((2, 7)) if sized == "ones" else size
    plan = plan_of(library, weights)
    found, sizes = tc.merge_weighted(plan, library.to_array(x.astype(dtype)), given)
    assert str(found.dtype).endswith(dtype)
    assert str(sizes.dtype).endswith("float32")
    tokens, wanted_sizes = expected(weights, x, size)
    np.testing.assert_allclose(library.to_numpy(found), tokens, 1e-5, 1e-6)
    np.testing.assert_allclose(library.to_numpy(sizes), wanted_sizes, 1e-6)


def test_a_dropped_token_has_no_effect(library, rng):
    """Whatever its values: it weighs 0 in the mean, and adds nothing to the size."""
    x = rng.normal(size=(2, 7, 5))
    mean = np.ones((2, 7))
    for number, merged in enumerate(MERGED):
        mean[number, merged] = 0
        x[number, merged] = np.nan
    weights = {"mean_weight": mean, "size_weight": np.zeros((2, 3))}
    found, sizes = tc.merge_weighted(plan_of(library, weights), library.to_array(x))
    kept = np.take_along_axis(x, np.array(KEPT)[:, :, None], axis=1)
    np.testing.assert_array_equal(library.to_numpy(found), kept)
    np.testing.assert_array_equal(library.to_numpy(sizes), np.ones((2, 4)))


def test_a_mean_keeps_the_largest_norm(library, rng):
    x = rng.normal(size=(2, 7, 5))
    found, _ = tc.merge_weighted(plan_of(library, {"keep_norm": True}), library.to_array(x))
    norms, before = np.linalg.norm(library.to_numpy(found), axis=2), np.linalg.norm(x, axis=2)
    assert norms[0, 1] == pytest.approx(before[0, 1:4].max())
    assert norms[0, 2] == pytest.approx(before[0, 4:6].max())
    for slot in (0, 3):
        np.testing.assert_array_equal(library.to_numpy(found)[0, slot], x[0, KEPT[0][slot]])


def test_merge_uses_the_weights_of_the_mean(library, rng):
    x, mean = rng.normal(size=(2, 7, 5)), rng.random((2, 7))
    plan = plan_of(library, {"mean_weight": mean})
    found = library.to_numpy(plan.merge(library.to_array(x)))
    tokens, _ = expected({"mean_weight": mean}, x, np.ones((2, 7)))
    np.testing.assert_allclose(found, tokens, 1e-6, 1e-7)
    plain = plan_of(library, {})
    for reduce in ("sum", "max"):
        one, other = (library.to_numpy(p.merge(library.to_array(x), reduce)) for p in (plan, plain))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_weight
def test_gradients_are_finite_at_tokens_of_norm_zero(differentiable, rng, wanted, dtype):
    x, weights = rng.normal(size=(2, 7, 5)).astype(dtype), arrays_of(rng, wanted)
    x[0, [1, 2, 3]] = x[1, 6] = 0
    x[0, 4] = -x[0, 5]  # whose plain mean has no direction
    plan = plan_of(differentiable, weights)
    gradient = differentiable.gradient(lambda x: tc.merge_weighted(plan, x)[0], x)
    assert np.isfinite(gradient).all()
    assert gradient.any()


@each_weight
def test_gradients(differentiable, rng, wanted):
    """Against finite differences."""
    x, weights, step = rng.normal(size=(2, 7, 3)), arrays_of(rng, wanted), 1e-6
    plan, factor = plan_of(differentiable, weights), rng.normal(size=(2, 4, 3))

    def total(x):
        return tc.merge_weighted(plan, x)[0] * differentiable.to_array(factor)

    gradient = differentiable.gradient(total, x)
    for place in np.ndindex(2, 7, 1):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        sums = [float(total(differentiable.to_array(one)).sum()) for one in (ahead, behind)]
        assert gradient[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-7)


def test_weighted_replaces_the_weights_and_keeps_the_plan(library, rng):
    plan = plan_of(library, {})
    mean = library.to_array(rng.random((2, 7)))
    weighted = plan.weighted(mean_weight=mean, keep_norm=True)
    assert weighted.mean_weight is mean
    assert weighted.size_weight is None
    assert weighted.keep_norm
    assert plan.mean_weight is None
    assert not plan.keep_norm
    again = weighted.weighted(size_weight=library.to_array(rng.random((2, 3))))
    assert again.mean_weight is None
    for name in ("kept", "merged", "into", "slots"):
        one, other = (library.to_numpy(getattr(each, name)) for each in (plan, again))
        np.testing.assert_array_equal(one, other)


WRONG = [
    (
        {"mean_weight": np.ones((2, 6))},
        ArgumentValueError,
        r"`mean_weight`.*\(B, N\), here 7.*\(2, 6\)",
    ),
    (
        {"mean_weight": np.ones(7)},
        ArgumentValueError,
        r"`mean_weight`.*shape \(B, N\); got shape \(7",
    ),
    ({"mean_weight": np.ones((3, 7))}, ArgumentValueError, r"`mean_weight` must have 2 samples"),
    (
        {"size_weight": np.ones((2, 7))},
        ArgumentValueError,
        r"`size_weight`.*\(B, r\), here 3.*\(2, 7\)",
    ),
    (
        {"size_weight": 1j * np.ones((2, 3))},
        ArgumentTypeError,
        r"`size_weight` must hold real numbers",
    ),
    ({"keep_norm": 1}, ArgumentTypeError, r"`keep_norm` must be True or False; got 1"),
]


@pytest.mark.parametrize(("weights", "error", "message"), WRONG)
def test_wrong_weights(library, weights, error, message):
    given = {
        name: library.to_array(one) if isinstance(one, np.ndarray) else one
        for name, one in weights.items()
    }
    plan = plan_of(library, {})
    with pytest.raises(error, match=message):
        plan.weighted(**given)
    with pytest.raises(error, match=message):
        tc.MergePlan(plan.kept, plan.merged, plan.into, **given)


def test_weights_of_another_library():
    torch = LIBRARIES["torch"]
    with pytest.raises(ArgumentTypeError, match="one library; got torch, torch, torch, numpy"):
        tc.MergePlan(
            *(torch.to_array(np.array(one)) for one in (KEPT, MERGED, INTO)),
            mean_weight=np.ones((2, 7)),
        )


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, by_pickle], ids=lambda one: one.__name__
)
@pytest.mark.parametrize("built", ["weights", "matching"])
def test_a_copy_of_a_plan_merges_the_same(built, copied, library, rng):
    if built == "weights":
        plan = plan_of(library, arrays_of(rng, WEIGHTS["all"]))
    else:
        plan = tc.bipartite_soft_matching(library.to_array(rng.random((2, 7, 5))), r=3)
    x = library.to_array(rng.random((2, 7, 5)))
    other = copied(plan)
    assert other.backend is plan.backend
    for name in ("kept", "merged", "into", "slots"):
        np.testing.assert_array_equal(
            library.to_numpy(getattr(other, name)), library.to_numpy(getattr(plan, name))
        )
    for one, same in zip(tc.merge_weighted(other, x), tc.merge_weighted(plan, x), strict=True):
        np.testing.assert_array_equal(library.to_numpy(one), library.to_numpy(same))
