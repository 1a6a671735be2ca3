"""Arguments are not changed, and a wrong one is named: the argument, the value, what is allowed."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
import torch
from libraries import LIBRARIES

import tomecore as tc
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError

KEYS = np.random.default_rng(0).normal(size=(2, 9, 4))


@pytest.fixture
def keys(library):
    return library.to_array(KEYS)


@pytest.fixture
def plan(keys):
    return tc.bipartite_soft_matching(keys, 3)


@pytest.fixture
def stranger(library):
    """Return a function that converts to arrays of another library than ``library``."""
    return LIBRARIES["numpy" if library.name != "numpy" else "torch"].to_array


def raises(error, *parts):
    """A tomecore error that is also the built-in one, whose message holds all ``parts`` in order."""
    builtin = {ArgumentValueError: ValueError, ArgumentTypeError: TypeError}[error]
    assert issubclass(error, TomeError)
    assert issubclass(error, builtin)
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


def test_nothing_is_mutated(library):
    """Compared before and after; NumPy's arrays are read-only besides, so a write would raise."""
    rng = np.random.default_rng(1)
    numbers = {
        "keys": rng.normal(size=(2, 9, 4)),
        "x": rng.normal(size=(2, 9, 4)),
        "size": rng.integers(1, 5, size=(2, 9)).astype("float32"),
        "source": rng.integers(0, 9, size=(2, 15)),
    }
    given = {name: library.to_array(values) for name, values in numbers.items()}
    # Views: where slices share memory (also Paddle's), a write would reach the whole.
    views = {name: array[:, :] for name, array in given.items()}
    for plan in (
        tc.bipartite_soft_matching(views["keys"], 3, protected=1),
        tc.bipartite_soft_matching(views["keys"], 3),
        tc.bipartite_soft_matching(views["keys"], 0),
        tc.kth_bipartite_soft_matching(views["keys"], 2),
        tc.random_bipartite_soft_matching(views["keys"], 4),
    ):
        before = [np.array(library.to_numpy(a)) for a in (plan.kept, plan.merged, plan.into)]
        for reduce in ("sum", "mean", "max"):
            plan.unmerge(plan.merge(views["x"], reduce))
        tc.merge_weighted(plan, views["x"])
        tc.merge_weighted(plan, views["x"], views["size"])
        slots = np.array(library.to_numpy(plan.slots))
        tc.compose(views["source"], plan)
        tc.compose(None, plan)
        after = (plan.kept, plan.merged, plan.into)
        for array, expected in zip(after, before, strict=True):
            np.testing.assert_array_equal(library.to_numpy(array), expected)
        np.testing.assert_array_equal(library.to_numpy(plan.slots), slots)
    for name, values in numbers.items():
        np.testing.assert_array_equal(library.to_numpy(given[name]), values, name)


def test_numpy_arrays_are_read_only_in_these_tests():
    array = LIBRARIES["numpy"].to_array(KEYS)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


MATCHINGS = {
    "bipartite": tc.bipartite_soft_matching,
    "kth": tc.kth_bipartite_soft_matching,
    "random": tc.random_bipartite_soft_matching,
}


@pytest.fixture(params=MATCHINGS.values(), ids=MATCHINGS.keys())
def match(request):
    return request.param


def amount(match):
    return "k" if match is tc.kth_bipartite_soft_matching else "r"


@pytest.mark.parametrize("shape", [(9,), (9, 4), (1, 2, 9, 4)], ids=str)
def test_rank_of_keys(library, match, shape):
    with raises(ArgumentValueError, "`keys`", "(B, N, D)", str(shape), "batch, tokens, channels"):
        match(library.to_array(np.ones(shape)), 2)


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_dtype_of_keys(library, match, dtype):
    with raises(ArgumentTypeError, "`keys`", "real floating point", dtype):
        match(library.to_array(KEYS.astype(dtype)), 2)


@pytest.mark.parametrize(
    "value",
    ["16", 1.5, 2.0, True, None, (2,), [2], np.float64(2), np.True_],
    ids=lambda value: f"{value!r} {type(value).__name__}",
)
def test_amount_is_no_integer(keys, match, value):
    with raises(ArgumentTypeError, f"`{amount(match)}`", "integer of at least 0", repr(value)):
        match(keys, value)


@pytest.mark.parametrize("value", [2, 2.5, True], ids=str)
@pytest.mark.parametrize("to_array", [torch.tensor, paddle.to_tensor], ids=["torch", "paddle"])
def test_amount_is_an_array(keys, match, to_array, value):
    """Reading it would wait for the device; and Paddle would make 2 of 2.5."""
    with raises(ArgumentTypeError, f"`{amount(match)}`", "integer of at least 0", "Tensor"):
        match(keys, to_array(value))


def test_amount_is_negative(keys, match):
    with raises(
        ArgumentValueError, f"`{amount(match)}`", "at least 0", "got -1 (int)", "Use 0 to merge"
    ):
        match(keys, -1)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2)], ids=["int64", "uint8"])
def test_numpy_integers_are_integers(keys, match, value):
    assert match(keys, value).num_merged == match(keys, 2).num_merged


def test_distillation_token_without_class_token(keys):
    with raises(ArgumentValueError, "`distill_token=True` needs `class_token=True`", "protected="):
        tc.bipartite_soft_matching(keys, 2, distill_token=True)


@pytest.mark.parametrize("protected", [0, 1])
@pytest.mark.parametrize(
    "names", [{"class_token": True}, {"class_token": True, "distill_token": True}], ids=len
)
def test_protected_said_twice(keys, names, protected):
    with raises(ArgumentValueError, f"`protected={protected}`", "class_token", "one of the two"):
        tc.bipartite_soft_matching(keys, 2, protected=protected, **names)


def test_protected(keys, match):
    with raises(ArgumentValueError, "`protected`", "at least 0", "-1"):
        match(keys, 2, protected=-1)
    for value in (1.0, "1", True):
        with raises(ArgumentTypeError, "`protected`", "integer of at least 0", repr(value)):
            match(keys, 2, protected=value)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ArgumentValueError), (None, ArgumentTypeError)], ids=str
)
def test_seed(keys, value, error):
    with raises(error, "`seed`", "integer of at least 0", repr(value)):
        tc.random_bipartite_soft_matching(keys, 2, seed=value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (KEYS.tolist(), "builtins.list"),
        (None, "builtins.NoneType"),
        (3, "builtins.int"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (paddle.nn.Linear(1, 1), "paddle.nn.layer.common.Linear"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keys_are_no_array(match, value, name):
    with raises(ArgumentTypeError, "expected an array", f"got {name}", "backends.register"):
        match(value, 2)


def test_array_of_another_library(library, plan, stranger):
    """For each argument, the message says which library the plan is of, and what came."""
    x, size = np.ones((2, 9, 4)), np.ones((2, 9), dtype="float32")
    source = np.zeros((2, 9), dtype="int64")
    came = type(stranger(x))
    came = f"{came.__module__}.{came.__qualname__}"
    for name, call in {
        "x": lambda: plan.merge(stranger(x)),
        "y": lambda: plan.unmerge(stranger(x[:, :6])),
        "size": lambda: tc.merge_weighted(plan, library.to_array(x), stranger(size)),
        "source": lambda: tc.compose(stranger(source), plan),
    }.items():
        with raises(ArgumentTypeError, f"`{name}`", f"of the plan, {library.name}", came):
            call()
    with raises(ArgumentTypeError, "`x`", f"of the plan, {library.name}", came):
        tc.merge_weighted(plan, stranger(x))


def test_plan_of_two_libraries(library, plan, stranger):
    numbers = np.zeros((2, 3), dtype="int64")
    other = "torch" if library.name == "numpy" else "numpy"
    with raises(
        ArgumentTypeError,
        "one library",
        f"got {library.name}, {library.name}, {other}",
        "from_dlpack",
    ):
        tc.MergePlan(plan.kept, plan.merged, stranger(numbers))


def test_arrays_of_a_plan(plan):
    kept, merged, into = plan.kept, plan.merged, plan.into
    with raises(ArgumentValueError, "`kept`", "(B, n)", "(6,)"):
        tc.MergePlan(kept[0], merged, into)
    with raises(ArgumentValueError, "`merged`", "(B, r)", "(3,)"):
        tc.MergePlan(kept, merged[0], into)
    with raises(ArgumentValueError, "`into`", "shape of `merged`", "3)", "got (2, 2)"):
        tc.MergePlan(kept, merged, into[:, :2])
    for name, arrays in {
        "kept": (kept * 1.0, merged, into),
        "merged": (kept, merged * 1.0, into),
        "into": (kept, merged, into * 1.0),
    }.items():
        with raises(ArgumentTypeError, f"`{name}`", "integers", "float"):
            tc.MergePlan(*arrays)


@pytest.mark.parametrize("shape", [(2, 9), (1, 2, 9, 4)], ids=str)
def test_rank_of_tokens(library, plan, shape):
    x = library.to_array(np.ones(shape))
    for name, letters, call in (
        ("x", "(B, N, C)", plan.merge),
        ("y", "(B, n, C)", plan.unmerge),
        ("x", "(B, N, C)", lambda x: tc.merge_weighted(plan, x)),
    ):
        with raises(ArgumentValueError, f"`{name}`", letters, str(shape)):
            call(x)


def test_token_count(library, plan):
    x = library.to_array(np.ones((2, 8, 4)))
    size = library.to_array(np.ones((2, 8), dtype="float32"))
    whole = library.to_array(np.ones((2, 9, 4)))
    for name, tokens, call in (
        ("x", 9, lambda: plan.merge(x)),
        ("x", 9, lambda: tc.merge_weighted(plan, x)),
        ("size", 9, lambda: tc.merge_weighted(plan, whole, size)),
        ("y", 6, lambda: plan.unmerge(x)),
    ):
        with raises(ArgumentValueError, f"`{name}` must have {tokens} tokens on axis 1", "(2, 8"):
            call()


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_size(library, plan, batch):
    """Rows of further samples would be dropped without a word: the gather is flat."""
    x = library.to_array(np.ones((batch, 9, 4)))
    whole = library.to_array(np.ones((2, 9, 4)))
    for name, call in {
        "x": lambda: plan.merge(x),
        "y": lambda: plan.unmerge(x[:, :6]),
        "size": lambda: tc.merge_weighted(plan, whole, x[:, :, 0]),
        "source": lambda: tc.compose(library.to_array(np.zeros((batch, 9), dtype=int)), plan),
    }.items():
        with raises(ArgumentValueError, f"`{name}` must have 2 samples on axis 0", f"({batch}, "):
            call()
    with raises(ArgumentValueError, "`x` must have 2 samples on axis 0", f"({batch}, 9, 4)"):
        tc.merge_weighted(plan, x)


def test_rank_of_sizes_and_sources(library, plan):
    x = library.to_array(np.ones((2, 9, 4)))
    with raises(ArgumentValueError, "`size`", "(B, N)", "(2, 9, 1)"):
        tc.merge_weighted(plan, x, x[:, :, :1])
    with raises(ArgumentValueError, "`source`", "(B, N0)", "(2, 9, 4)"):
        tc.compose(library.to_array(np.ones((2, 9, 4), dtype="int64")), plan)


def test_dtype_of_tokens_and_sources(library, plan):
    x = library.to_array(np.ones((2, 9, 4), dtype="int64"))
    with raises(ArgumentTypeError, "`x`", "real floating point", 'reduce="mean"', "int64"):
        plan.merge(x)
    with raises(ArgumentTypeError, "`x`", "real floating point", "int64"):
        tc.merge_weighted(plan, x)
    with raises(ArgumentTypeError, "`source`", "integers", "float64"):
        tc.compose(library.to_array(np.zeros((2, 9))), plan)


@pytest.mark.parametrize("value", ["min", "prod", "", "SUM", 5, None, []], ids=repr)
def test_reduction(library, plan, value):
    x = library.to_array(np.ones((2, 9, 4)))
    allowed = "'mean', 'sum', 'max', 'amax'"
    with raises(ArgumentValueError, "`reduce` must be one of", allowed, f"got {value!r}"):
        plan.merge(x, value)
    if value is not None:
        with raises(ArgumentValueError, "`mode` must be one of", allowed, f"got {value!r}"):
            plan.merge(x, "sum", mode=value)


@pytest.mark.parametrize("ones", [("merged", "into"), ("into",), ("kept",), ("merged",)], ids=str)
def test_a_plan_for_one_sample_does_not_serve_two(library, ones):
    """Merging (1, r) of (2, n) would leave the second sample as it is."""
    arrays = {"kept": [[0, 2], [0, 2]], "merged": [[1], [1]], "into": [[0], [1]]}
    for name in ones:
        arrays[name] = arrays[name][:1]
    given = {name: library.to_array(np.array(values)) for name, values in arrays.items()}
    name = "into" if ones == ("into",) else "merged"
    samples = "1" if ones == ("kept",) else "2"
    with raises(
        ArgumentValueError, f"`{name}`", f"{samples} samples on axis 0", "as `kept` has", "got"
    ):
        tc.MergePlan(**given)


def not_unpacked(plan):
    merge, unmerge = plan
    return {
        "the function MergePlan.merge": merge,
        "builtins.tuple. A pair (merge, unmerge)": (merge, unmerge),
        "builtins.list. A pair (merge, unmerge)": [merge, unmerge],
        "builtins.NoneType. Pass the plan that": None,
        "builtins.dict. Pass the plan that": {},
    }


def test_what_is_no_plan(library, plan):
    """The published code passes the merging function; neither the pair nor anything else is a plan."""
    x = library.to_array(np.ones((2, 9, 4)))
    source = library.to_array(np.zeros((2, 9), dtype="int64"))
    for found, value in not_unpacked(plan).items():
        with raises(ArgumentTypeError, "`plan` must be a MergePlan", found, "merge_weighted(plan,"):
            tc.merge_weighted(value, x)
        with raises(ArgumentTypeError, "`plan` must be a MergePlan", found, "compose(source, plan"):
            tc.compose(source, value)
    with raises(ArgumentTypeError, "merge_wavg(merge, x, size)", "pass the plan", "merge_weighted"):
        tc.merge_weighted(plan.merge, x, None)
    with raises(ArgumentTypeError, "`plan`", "Tensor" if library.name != "numpy" else "ndarray"):
        tc.merge_weighted(x, plan)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_sizes_are_real(name):
    library = LIBRARIES[name]
    x = library.to_array(np.ones((2, 9, 4)))
    plan = tc.bipartite_soft_matching(x, 3)
    with raises(ArgumentTypeError, "`size` must hold real numbers", "complex64"):
        tc.merge_weighted(plan, x, library.to_array(np.ones((2, 9), dtype="complex64")))
    sizes = library.to_array(np.ones((2, 9), dtype="bool"))
    assert library.to_numpy(tc.merge_weighted(plan, x, sizes)[1]).sum() == 18
