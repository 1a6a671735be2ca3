"""Every registered matching chooses what plain loops choose, and keeps the contract of a matching."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import reference_matchings as reference
import torch
from given_context import GivenContext, images_of, random_arrays
from libraries import LIBRARIES

import tomecore as tc
from tomecore import matching
from tomecore.errors import ArgumentTypeError, ArgumentValueError, UnsupportedModelError

#: name -> the sets of options to test it with
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "tome": [{}],
    "bidirectional": [{}],
    "tome_cis": [{}],
    "diffrate": [{}, {"prune": 0.5}, {"prune": 1}],
    "evit": [{}],
    "pitome": [{}, {"form": "pure"}, {"margin": 0.9}, {"form": "pure", "margin": 0.0}],
    "tofu": [{}, {"prune_layers": 0}, {"prune_layers": 4}],
    "ppt": [{}, {"threshold": 0.0}, {"threshold": 0.004}, {"threshold": 9.0}],
    "kth": [{}, {"k": 3}, {"k": 50}],
    "random": [{}, {"seed": 7}],
    "drop_similar": [{}, {"keep_size": False}],
}
VARIANTS = [(name, options) for name, sets in OPTIONS.items() for options in sets]
#: matchings that lose nothing of an image in which each patch occurs twice
LOSSLESS = ("tome", "bidirectional", "tome_cis", "pitome", "tofu", "kth", "drop_similar")
#: tokens, prefix tokens, r
SHAPES = [
    (12, 1, 3),
    (13, 0, 1),
    (13, 0, 6),
    (14, 2, 6),
    (17, 5, 5),
    (16, 1, 7),
    (3, 1, 1),
    (2, 0, 1),
]
each_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda one: str(one).strip("{}").replace("'", "")
)


def bound(name, options):
    return functools.partial(matching.find(name), **options) if options else matching.find(name)


def check(library, name, options, arrays, r, **context):
    """The plan of a matching is that of the reference, image by image, and so are its weights."""
    given = GivenContext.of(library, arrays, **context)
    plan = bound(name, options)(library.to_array(arrays["keys"]), r, given)
    found = [getattr(reference, name)(one, r, **options) for one in images_of(arrays, **context)]
    for part in ("kept", "merged", "into"):
        values = library.to_numpy(getattr(plan, part))
        assert values.dtype.kind == "i"
        np.testing.assert_array_equal(values, [getattr(one.plan, part) for one in found], part)
    for part, expected in (("mean_weight", "mean"), ("size_weight", "share")):
        weights, wanted = getattr(plan, part), [getattr(one, expected) for one in found]
        assert (weights is None) == (wanted[0] is None), part
        if weights is not None:
            np.testing.assert_allclose(library.to_numpy(weights), wanted, 1e-6, 1e-12, err_msg=part)
    assert plan.keep_norm == found[0].keep_norm
    x, sizes = arrays["x"], np.ones(arrays["x"].shape[:2])
    if arrays["valid"] is not None:
        sizes = sizes * arrays["valid"]
    merged = tc.merge_weighted(plan, library.to_array(x), library.to_array(sizes))
    expected = [reference.merge(one, *pair) for one, *pair in zip(found, x, sizes, strict=True)]
    for one, wanted in zip(merged, zip(*expected, strict=True), strict=True):
        np.testing.assert_allclose(library.to_numpy(one), np.array(wanted), 1e-5, 1e-6)
    return plan


def test_every_matching_is_tested():
    assert list(OPTIONS) == matching.names()


@each_variant
def test_decisions(library, rng, name, options):
    for tokens, protected, r in SHAPES:
        arrays = random_arrays(rng, tokens)
        check(library, name, options, arrays, r, protected=protected, layer=1, num_layers=4)


@each_variant
def test_decisions_in_a_late_layer_with_sizes(library, rng, name, options):
    arrays = random_arrays(rng, 15, sizes=rng.integers(1, 5, size=(3, 15)))
    check(library, name, options, arrays, 5, protected=1, layer=3, num_layers=4)


@each_variant
@pytest.mark.parametrize(("protected", "r"), [(0, 6), (1, 1), (1, 4), (2, 3), (2, 6)])
def test_padding(library, rng, name, options, protected, r):
    valid = np.arange(14)[None, :] < np.array([[9], [14], [3]])
    arrays = random_arrays(rng, 14, valid=valid)
    arrays["attention"] *= valid
    plan = check(library, name, options, arrays, r, protected=protected, layer=1, num_layers=4)
    merged, kept, into = (library.to_numpy(one) for one in (plan.merged, plan.kept, plan.into))
    for real, gone, stay, slots in zip(valid, merged, kept, into, strict=True):
        for token, target in zip(gone, stay[slots], strict=True):
            if real[token] and not real[target]:
                assert name not in {"diffrate", "evit", "pitome", "random"}
                k = options.get("k", 2) if name == "kth" else 0
                side = range(protected + k - 1, 14, k) if k else range(protected, 14)
                assert not any(real[one] for one in side if k or (one - token) % 2)


@each_variant
def test_all_equal_tokens(library, name, options):
    """Ties go to the first token, everywhere."""
    arrays = {
        "keys": np.ones((3, 12, 4)),
        "x": np.ones((3, 12, 4)),
        "attention": np.ones((3, 12)) / 16,
        "values": np.ones((3, 2, 12, 4)),
        "valid": None,
        "sizes": None,
    }
    for protected, r in ((0, 6), (1, 4), (2, 5)):
        check(library, name, options, arrays, r, protected=protected)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "pitome"])
def test_two_kinds_of_tokens(library, name):
    """Not PiToMe, whose energies are sums: in another order they round differently."""
    kinds = np.array([[0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1]] * 3)
    values = np.eye(4)[kinds][:, None].repeat(2, axis=1)
    arrays = {
        "keys": np.eye(4)[kinds],
        "x": np.eye(4)[1 - kinds],
        "attention": (1 + kinds) / 16,
        "values": values,
        "valid": None,
        "sizes": None,
    }
    for protected, r in ((0, 6), (1, 4), (2, 5)):
        check(library, name, {}, arrays, r, protected=protected)


@each_variant
def test_tokens_of_norm_zero(library, rng, name, options):
    arrays = random_arrays(rng, 13)
    arrays["keys"][0, 4:7] = arrays["x"][0, 5:9] = arrays["values"][0, :, 3:6] = 0
    arrays["attention"][0, 6:9] = 0
    plan = check(library, name, options, arrays, 5, protected=1, layer=1, num_layers=4)
    for weights in (plan.mean_weight, plan.size_weight):
        assert weights is None or np.isfinite(library.to_numpy(weights)).all()
    for everything in (0.0, 1e-30):
        arrays = {key: one if one is None else one * everything for key, one in arrays.items()}
        given = GivenContext.of(library, arrays, protected=1)
        plan = bound(name, options)(library.to_array(arrays["keys"]), 5, given)
        merged, sizes = tc.merge_weighted(plan, library.to_array(arrays["x"]))
        assert np.isfinite(library.to_numpy(merged)).all()
        assert np.isfinite(library.to_numpy(sizes)).all()


@each_variant
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_contract(library, rng, name, options, dtype):
    """N - r slots, prefix tokens first and in order; every token once; nothing goes to a prefix token."""
    tokens, protected, r = 15, 2, 5
    arrays = random_arrays(rng, tokens, dtype=dtype)
    given = GivenContext.of(library, arrays, protected=protected, layer=1, num_layers=4)
    plan = bound(name, options)(library.to_array(arrays["keys"]), r, given)
    assert isinstance(plan, tc.MergePlan)
    kept, merged, into = (library.to_numpy(one) for one in (plan.kept, plan.merged, plan.into))
    assert (kept.shape, merged.shape, into.shape) == ((3, tokens - r), (3, r), (3, r))
    np.testing.assert_array_equal(kept[:, :protected], [[0, 1]] * 3)
    everything = np.sort(np.concatenate([kept, merged], axis=1), axis=1)
    np.testing.assert_array_equal(everything, np.arange(tokens)[None].repeat(3, axis=0))
    assert into.min() >= protected
    assert into.max() < tokens - r
    assert set(matching.needs_of(bound(name, options))) == given.read


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_doubled_image_loses_nothing(library, rng, name):
    """Each patch next to its twin, merged by half: all tokens come back, and each size is 2."""
    arrays = random_arrays(rng, 8)
    arrays = {
        key: one if one is None else np.repeat(one, 2, axis=2 if key == "values" else 1)
        for key, one in arrays.items()
    }
    for layer in (0, 3):
        given = GivenContext.of(library, arrays, layer=layer, num_layers=4)
        plan = matching.find(name)(library.to_array(arrays["keys"]), 8, given)
        merged, sizes = tc.merge_weighted(plan, library.to_array(arrays["x"]))
        back = library.to_numpy(plan.unmerge(merged))
        np.testing.assert_allclose(back, arrays["x"], 1e-6, 1e-6)
        np.testing.assert_array_equal(library.to_numpy(sizes), np.full((3, 8), 2))


@pytest.mark.parametrize("name", ["diffrate", "evit", "ppt", "random"])
def test_importance_cannot_see_twins(library, rng, name):
    """These do not choose by similarity, so the law above does not hold for them."""
    arrays = random_arrays(rng, 8)
    arrays = {
        key: one if one is None else np.repeat(one, 2, axis=2 if key == "values" else 1)
        for key, one in arrays.items()
    }
    plan = matching.find(name)(
        library.to_array(arrays["keys"]), 8, GivenContext.of(library, arrays)
    )
    merged, _ = tc.merge_weighted(plan, library.to_array(arrays["x"]))
    assert not np.allclose(library.to_numpy(plan.unmerge(merged)), arrays["x"], 1e-2, 1e-2)


def test_ppt_decides_for_each_image(library, rng):
    arrays = random_arrays(rng, 12)
    arrays["values"][:] = 1
    arrays["attention"][:] = 1 / 12
    arrays["attention"][1, 5] = 0.5
    plan = check(library, "ppt", {"threshold": 1e-4}, arrays, 4, protected=1)
    shares = library.to_numpy(plan.size_weight)
    assert shares.tolist() == [[1] * 4, [0] * 4, [1] * 4]
    weights = library.to_numpy(plan.mean_weight)
    assert (weights == 0).sum(axis=1).tolist() == [0, 4, 0]


def test_random_depends_on_seed_and_layer_only(library, rng):
    def chosen(layer, **options):
        arrays = random_arrays(rng, 24)
        given = GivenContext.of(library, arrays, protected=1, layer=layer, num_layers=4)
        plan = matching.random(library.to_array(arrays["keys"]), 8, given, **options)
        merged = library.to_numpy(plan.merged)
        assert (merged == merged[0]).all()
        return merged[0].tolist()

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1) != chosen(2)
    assert chosen(0) != chosen(0, seed=1)


@each_variant
def test_float32_is_as_good_where_scores_are_far_apart(library, rng, name, options):
    """Keys with exact products, so that both dtypes decide the same."""
    arrays = random_arrays(rng, 14)
    found = []
    for dtype in ("float32", "float64"):
        cast = {key: one if one is None else one.astype("float32") for key, one in arrays.items()}
        cast = {key: one if one is None else one.astype(dtype) for key, one in cast.items()}
        given = GivenContext.of(library, cast, protected=1, layer=1, num_layers=4)
        found.append(bound(name, options)(library.to_array(cast["keys"]), 4, given))
    for part in ("kept", "merged", "into"):
        one, other = (library.to_numpy(getattr(plan, part)) for plan in found)
        np.testing.assert_array_equal(one, other)


@each_variant
def test_torch_and_paddle_agree(rng, name, options):
    arrays = random_arrays(rng, 40)
    merged = []
    for library in (LIBRARIES["torch"], LIBRARIES["paddle"]):
        given = GivenContext.of(library, arrays, protected=1, layer=2, num_layers=4)
        plan = bound(name, options)(library.to_array(arrays["keys"]), 17, given)
        found = tc.merge_weighted(plan, library.to_array(arrays["x"]))
        merged.append([library.to_numpy(one) for one in (plan.slots, *found)])
    np.testing.assert_array_equal(merged[0][0], merged[1][0])
    for one, other in zip(merged[0][1:], merged[1][1:], strict=True):
        np.testing.assert_allclose(one, other, 1e-11, 1e-11)


@each_variant
def test_gradients_flow_through_the_mean(differentiable, rng, name, options):
    """They are those of the mean; the choice and the weights have none."""
    arrays = random_arrays(rng, 11)
    given = GivenContext.of(differentiable, arrays, protected=1, layer=2, num_layers=4)
    plan = bound(name, options)(differentiable.to_array(arrays["keys"]), 4, given)
    weight = rng.normal(size=(3, 7, arrays["x"].shape[2]))

    def total(x):
        return tc.merge_weighted(plan, x)[0] * differentiable.to_array(weight)

    x, step = arrays["x"], 1e-6
    gradient = differentiable.gradient(total, x)
    for place in ((0, 0, 0), (0, 3, 1), (1, 7, 2), (2, 10, 0)):
        ahead, behind = x.copy(), x.copy()
        ahead[place] += step
        behind[place] -= step
        sums = [float(total(differentiable.to_array(one)).sum()) for one in (ahead, behind)]
        assert gradient[place] == pytest.approx((sums[0] - sums[1]) / (2 * step), abs=1e-7)


def test_a_context_without_a_block_says_so():
    x = np.ones((1, 4, 2))
    for name in ("tome_cis", "diffrate", "evit", "ppt"):
        with pytest.raises(UnsupportedModelError, match="reads the attention of a block"):
            matching.find(name)(x, 1, matching.Context(x))


WRONG = [
    ("diffrate", {"prune": 1.5}, ArgumentValueError, r"`prune`.* must be from 0 to 1; got 1\.5"),
    ("diffrate", {"prune": float("nan")}, ArgumentValueError, r"`prune`.*got nan"),
    (
        "diffrate",
        {"prune": "all"},
        ArgumentTypeError,
        r"`prune` must be a number; got 'all' \(str\)",
    ),
    (
        "tofu",
        {"prune_layers": -1},
        ArgumentValueError,
        r"`prune_layers` must be an integer of at le",
    ),
    ("tofu", {"prune_layers": 1.5}, ArgumentTypeError, r"`prune_layers` must be an integer.*1\.5"),
    ("ppt", {"threshold": None}, ArgumentTypeError, r"`threshold` must be a number; got None"),
    ("kth", {"k": 1}, ArgumentValueError, r"`k` must be an integer of at least 2; got 1"),
    (
        "random",
        {"seed": -3},
        ArgumentValueError,
        r"`seed` must be an integer of at least 0; got -3",
    ),
    (
        "drop_similar",
        {"keep_size": 1},
        ArgumentTypeError,
        r"`keep_size` must be True or False; got 1",
    ),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), WRONG)
def test_wrong_options(rng, name, options, error, message):
    arrays = random_arrays(rng, 8)
    given = GivenContext.of(LIBRARIES["numpy"], arrays)
    with pytest.raises(error, match=message):
        bound(name, options)(arrays["keys"], 2, given)


def test_matching_makes_no_gradient_graph(rng):
    """Nothing is saved for a backward pass, though the keys and tokens need gradients."""
    arrays = random_arrays(rng, 12)
    keys, x = (torch.tensor(arrays[key], requires_grad=True) for key in ("keys", "x"))
    given = GivenContext.of(LIBRARIES["torch"], arrays, protected=1, x=x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda one: one):
        for name in matching.names():
            matching.find(name)(keys, 4, given)
            assert not saved, name


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"form": "top"}, ArgumentValueError, "`form` must be 'bsm' or 'pure'; got 'top'"),
        ({"margin": "0.9"}, ArgumentTypeError, "`margin` must be"),
    ],
)
def test_wrong_options_of_pitome(options, error, text):
    keys = np.ones((1, 8, 4))
    with pytest.raises(error, match=text):
        matching.pitome(keys, 2, matching.Context(keys), **options)
