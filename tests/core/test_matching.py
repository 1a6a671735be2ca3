"""Every matching algorithm returns the plan of the reference, on every library."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import pytest
import reference
import torch
from libraries import LIBRARIES

import tomecore as tc

SHAPES = [(1, 1), (2, 2), (1, 3), (2, 4), (1, 7), (3, 8), (2, 13), (2, 24)]


def same_plan(plan, expected, library) -> None:
    """Check that ``plan`` equals ``expected``, the reference's plan of each sample."""
    for name in ("kept", "merged", "into"):
        found = library.to_numpy(getattr(plan, name))
        np.testing.assert_array_equal(found, [getattr(one, name) for one in expected], name)
        assert found.dtype.kind == "i"
    slots = library.to_numpy(plan.slots)
    np.testing.assert_array_equal(slots, [one.slots() for one in expected], "slots")
    assert plan.num_tokens == slots.shape[1]
    assert plan.num_slots == len(expected[0].kept)
    assert plan.num_merged == len(expected[0].merged)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
class TestGrid:
    """Every number of protected tokens, r, k and seed for one shape. Hypothesis draws more of them."""

    def test_bipartite(self, library, rng, shape):
        for protected, r in itertools.product((0, 1, 2, 5), (0, 1, 3, 100)):
            keys = rng.normal(size=(*shape, 6))
            plan = tc.bipartite_soft_matching(library.to_array(keys), r, protected=protected)
            same_plan(plan, [reference.bipartite(one, r, protected) for one in keys], library)

    def test_kth(self, library, rng, shape):
        for protected, k in itertools.product((0, 1, 2, 5), (0, 1, 2, 3, 5, 100)):
            keys = rng.normal(size=(*shape, 6))
            plan = tc.kth_bipartite_soft_matching(library.to_array(keys), k, protected=protected)
            same_plan(plan, [reference.kth(one, k, protected) for one in keys], library)

    def test_random(self, library, rng, shape):
        """The choice is NumPy's permutation of the seed, so it is the same on every library."""
        for protected, seed, r in itertools.product((0, 1, 2, 5), (0, 7), (0, 1, 3, 100)):
            keys = rng.normal(size=(*shape, 6))
            plan = tc.random_bipartite_soft_matching(
                library.to_array(keys), r, seed=seed, protected=protected
            )
            free = max(0, shape[1] - protected)
            permutation = np.random.default_rng(seed).permutation(free).tolist()
            wanted = [reference.random(one, r, permutation, protected) for one in keys]
            same_plan(plan, wanted, library)


def keys_by_formula():
    """Numbers that no release of a random generator changes."""
    return np.cos(np.arange(2 * 9 * 3).reshape(2, 9, 3) ** 2 % 31.0)


def test_plans_without_protected_tokens_are_those_of_before(library):
    """Written down before these two algorithms had ``protected``; kth is in the golden numbers, too."""
    keys = library.to_array(keys_by_formula())
    for options in ({}, {"protected": 0}):
        plan = tc.random_bipartite_soft_matching(keys, 4, seed=5, **options)
        assert library.to_numpy(plan.kept).tolist() == [[0, 7, 5, 6, 8]] * 2
        assert library.to_numpy(plan.merged).tolist() == [[1, 4, 2, 3]] * 2
        assert library.to_numpy(plan.into).tolist() == [[4, 3, 1, 0], [4, 4, 0, 4]]
        plan = tc.kth_bipartite_soft_matching(keys, 4, **options)
        assert library.to_numpy(plan.kept).tolist() == [[3, 7, 8]] * 2
        assert library.to_numpy(plan.merged).tolist() == [[0, 1, 2, 4, 5, 6]] * 2
        assert library.to_numpy(plan.into).tolist() == [[0, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1]]


def test_random_depends_on_the_seed(library, rng):
    keys = library.to_array(rng.normal(size=(1, 24, 6)))
    plans = [tc.random_bipartite_soft_matching(keys, 8, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (library.to_numpy(plan.merged).tolist() for plan in plans)
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("names", "protected"),
    [({}, 0), ({"class_token": True}, 1), ({"class_token": True, "distill_token": True}, 2)],
    ids=["none", "class", "class+distill"],
)
def test_tomes_names_for_protected_tokens(library, rng, names, protected):
    keys = rng.normal(size=(2, 11, 6))
    plan = tc.bipartite_soft_matching(library.to_array(keys), 3, **names)
    same_plan(plan, [reference.bipartite(one, 3, protected) for one in keys], library)


def test_names_may_be_positional_as_in_tome(library, rng):
    keys = rng.normal(size=(2, 11, 6))
    plan = tc.bipartite_soft_matching(library.to_array(keys), 3, True, True)
    same_plan(plan, [reference.bipartite(one, 3, 2) for one in keys], library)


@pytest.mark.parametrize(
    "match",
    [
        tc.bipartite_soft_matching,
        tc.kth_bipartite_soft_matching,
        tc.random_bipartite_soft_matching,
    ],
)
def test_protected_tokens_stay_where_they_are(library, rng, match):
    """Even when they are the most similar of all."""
    keys = rng.normal(size=(2, 14, 6))
    keys[:, :5] = keys[:, 5:6]
    plan = match(library.to_array(keys), 4, protected=5)
    assert plan.num_merged > 3
    kept, into = library.to_numpy(plan.kept), library.to_numpy(plan.into)
    np.testing.assert_array_equal(kept[:, :5], np.broadcast_to(np.arange(5), (2, 5)))
    assert into.min() >= 5


EQUAL = np.ones((2, 12, 4))
TWO_KINDS = np.eye(4)[np.array([[0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1]])].repeat(2, axis=0)


@pytest.mark.parametrize("keys", [EQUAL, TWO_KINDS], ids=["all equal", "two kinds"])
@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_go_to_the_first_token(library, keys, protected, dtype):
    keys = keys.astype(dtype)
    plan = tc.bipartite_soft_matching(library.to_array(keys), 3, protected=protected)
    same_plan(plan, [reference.bipartite(one, 3, protected) for one in keys], library)


def test_ties_by_hand(library):
    plan = tc.bipartite_soft_matching(library.to_array(EQUAL), 4)
    assert library.to_numpy(plan.merged)[0].tolist() == [0, 2, 4, 6]
    assert library.to_numpy(plan.kept)[0].tolist() == [8, 10, 1, 3, 5, 7, 9, 11]
    assert library.to_numpy(plan.into)[0].tolist() == [2, 2, 2, 2]


def test_many_ties_are_sorted_stably(library):
    """Long enough that an unstable sort shows: short rows are sorted by insertion everywhere."""
    keys = np.ones((2, 4000, 4))
    plan = tc.bipartite_soft_matching(library.to_array(keys), 1500)
    merged = np.broadcast_to(np.arange(0, 3000, 2), (2, 1500))
    np.testing.assert_array_equal(library.to_numpy(plan.merged), merged)
    kept = np.concatenate([np.arange(3000, 4000, 2), np.arange(1, 4000, 2)])
    np.testing.assert_array_equal(library.to_numpy(plan.kept)[1], kept)


def test_ties_in_the_other_algorithms(library):
    keys = library.to_array(EQUAL)
    assert not library.to_numpy(tc.kth_bipartite_soft_matching(keys, 3).into).any()
    assert not library.to_numpy(tc.random_bipartite_soft_matching(keys, 5).into).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keys_of_norm_zero_are_similar_to_none(library, rng, dtype):
    """Similarity 0, not NaN: such a token merges after those that have a friend."""
    keys = rng.normal(size=(2, 13, 6))
    keys[0, 4] = keys[0, 5] = keys[1, :6] = 0
    keys = keys.astype(dtype)
    for protected in (0, 1):
        plan = tc.bipartite_soft_matching(library.to_array(keys), 3, protected=protected)
        same_plan(plan, [reference.bipartite(one, 3, protected) for one in keys], library)
    plan = tc.kth_bipartite_soft_matching(library.to_array(keys), 4)
    same_plan(plan, [reference.kth(one, 4) for one in keys], library)


def test_only_zero_keys(library):
    plan = tc.bipartite_soft_matching(library.to_array(np.zeros((1, 6, 4))), 2)
    assert library.to_numpy(plan.merged).tolist() == [[0, 2]]
    assert library.to_numpy(plan.into).tolist() == [[1, 1]]


def test_length_of_a_key_does_not_matter(library, rng):
    keys = rng.normal(size=(2, 13, 6))
    scaled = keys * 2.0 ** rng.integers(-20, 20, size=(2, 13, 1))
    plan = tc.bipartite_soft_matching(library.to_array(scaled), 4)
    same_plan(plan, [reference.bipartite(one, 4) for one in keys], library)


VIEWS = {
    "heads": lambda array: array[:, :, 0, :],
    "every other token": lambda array: array[:, ::2, 1, :],
    "every other channel": lambda array: array[:, :, 1, ::2],
    "behind the first": lambda array: array[:, 3:, 1, :],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_strided_keys(library, rng, view):
    whole = rng.normal(size=(2, 14, 2, 6))
    keys = view(library.to_array(whole))
    plan = tc.bipartite_soft_matching(keys, 3, protected=1)
    same_plan(plan, [reference.bipartite(one, 3, 1) for one in view(whole)], library)
    x = view(library.to_array(whole))
    found = library.to_numpy(plan.merge(x))
    expected = [reference.merge(reference.bipartite(one, 3, 1), one, "mean") for one in view(whole)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_transposed_keys(library, rng):
    whole = rng.normal(size=(2, 6, 14))
    turned = np.swapaxes(whole, 1, 2)
    keys = {
        "numpy": lambda: turned,
        "torch": lambda: torch.tensor(whole).transpose(1, 2),
        "paddle": lambda: paddle.to_tensor(whole).transpose([0, 2, 1]),
    }[library.name]()
    plan = tc.bipartite_soft_matching(keys, 3)
    same_plan(plan, [reference.bipartite(one, 3) for one in turned], library)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_half_precision_keys_are_compared_in_float32(name):
    """Enough tokens that half precision, with its thousand numbers below 1, would tie."""
    library = LIBRARIES[name]
    keys = np.random.default_rng(3).normal(size=(2, 160, 6)).astype("float16")
    expected = [reference.bipartite(one, 40) for one in keys.astype("float64")]
    same_plan(tc.bipartite_soft_matching(library.to_array(keys), 40), expected, library)


def test_matching_makes_no_gradient_graph(differentiable, rng):
    """Nothing is saved for a backward pass, though the keys require gradients."""
    keys = rng.normal(size=(2, 12, 6))
    saved = []

    def save(tensor):
        saved.append(tensor)
        return tensor

    if differentiable.name == "torch":
        hooks, asking = torch.autograd.graph.saved_tensors_hooks, torch.tensor(keys)
        asking.requires_grad = True
    else:
        hooks, asking = paddle.autograd.saved_tensors_hooks, paddle.to_tensor(keys)
        asking.stop_gradient = False  # type: ignore[attr-defined]
    with hooks(save, lambda tensor: tensor):
        tc.bipartite_soft_matching(asking, 4, protected=1)
        tc.kth_bipartite_soft_matching(asking, 3)
        tc.random_bipartite_soft_matching(asking, 4)
        for r in (None, 3):
            tc.partition_matching(asking, np.arange(5), np.arange(6, 9), r, chunk=2)
        assert not saved
        (asking * asking).sum()
        assert saved, "the hook does not notice what is saved"
