"""``backends.check`` accepts correct libraries, finds each planted fault, and needs only what is used."""

from __future__ import annotations

import re
import types
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from given_context import GivenContext, random_arrays
from libraries import LIBRARIES

import tomecore as tc
from tomecore import backends, matching
from tomecore.backends import REQUIRED, Backend, backend_of, check
from tomecore.errors import ArgumentTypeError, TomeError, UnsupportedLibraryError


def namespace(**replaced):
    """NumPy's namespace, without anything that is not required; None takes a name away."""
    made = types.ModuleType("mylib")
    for name in REQUIRED:
        setattr(made, name, getattr(xp, name))
    for name, function in replaced.items():
        delattr(made, name)
        if function is not None:
            setattr(made, name, function)
    return made


def faults(backend, **options):
    with pytest.raises(UnsupportedLibraryError) as raised:
        check(backend, **options)
    assert all(f"\n  - {fault}" in str(raised.value) for fault in raised.value.faults)
    return raised.value.faults


@pytest.mark.parametrize("library", LIBRARIES.values(), ids=repr)
def test_what_tomecore_knows_passes(library):
    check(library.to_array(np.ones(2)))
    check(backend_of(library.to_array(np.ones(2))))
    check(Backend("defaults", backend_of(library.to_array(np.ones(2))).xp))


def test_a_namespace_passes():
    check(xp)
    check(namespace())


class Recorder:
    """A namespace that notes how each of its functions is called: its name and the names of keywords."""

    def __init__(self):
        self.calls = set()

    def __getattr__(self, name):
        function = getattr(xp, name)
        if name in {"float32", "float64"}:
            self.calls.add((name,))
            return function

        def recorded(*arguments, **options):
            self.calls.add((name, *sorted(options)))
            return function(*arguments, **options)

        return recorded


def run_everything(rng):
    """Every public algorithm of the core, in all of its ways."""
    keys, x = rng.normal(size=(2, 11, 4)), rng.normal(size=(2, 11, 3)).astype("float32")
    sizes = rng.integers(0, 3, size=(2, 11))
    plans = [tc.bipartite_soft_matching(keys, r, protected=p) for r, p in ((4, 0), (4, 1), (0, 0))]
    plans += [tc.bipartite_soft_matching(keys, 4, valid=sizes > 0)]
    for p in (0, 1):
        plans += [tc.kth_bipartite_soft_matching(keys, 3, protected=p)]
        plans += [tc.random_bipartite_soft_matching(keys, 3, protected=p)]
    sources, destinations = np.asarray([9, 0, 3, 4, 8]), np.asarray([7, 2, 5])
    for r, chunk in ((None, None), (3, 2), (0, None)):
        plans += [tc.partition_matching(keys, sources, destinations, r, chunk=chunk)]
    for plan in plans:
        for reduce in ("mean", "sum", "max"):
            plan.unmerge(plan.merge(x, reduce))
        plan.merge(sizes[:, :, None], "sum")
        for size in (None, sizes):
            tc.merge_weighted(plan, x, size)
        tc.compose(plan.slots, tc.MergePlan(plan.kept, plan.merged, plan.into))
    run_every_matching(rng)


def run_every_matching(rng):
    """Every matching, with and without padding."""
    arrays = random_arrays(rng, 11, dtype="float32", valid=rng.random((3, 11)) < 0.8)
    for valid in (None, arrays["valid"]):
        given = {**arrays, "valid": valid}
        for name in matching.names():
            context = GivenContext.of(LIBRARIES["numpy"], given, protected=1, num_layers=2)
            plan = matching.find(name)(arrays["keys"], 4, context)
            tc.merge_weighted(plan.weighted(keep_norm=True), arrays["x"])
            tc.merge_weighted(plan, arrays["x"])


def test_required_is_what_the_algorithms_use(clean_registry, rng):
    """The check covers exactly the names and keywords that the algorithms use."""
    recorder = Recorder()
    backend = Backend("recorded", recorder)
    assert backends.gaps_of(backend) == []
    asked = recorder.calls
    backends.register("numpy", backend)
    recorder.calls = set()
    run_everything(rng)
    used = recorder.calls
    assert used - asked == set()
    assert {name for name, *_ in used} == set(REQUIRED)
    makes_the_arrays = {("asarray",)}
    assert asked - used - makes_the_arrays == set()


def kept_order(x, axis=-1, descending=False, stable=True):
    """The order of equal values turned around."""
    width = x.shape[axis]
    order = xp.argsort(np.flip(x, axis), axis=axis, descending=descending, stable=stable)  # type: ignore[attr-defined]
    return width - 1 - order


def last_of_equals(x, axis):
    return x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis)


def wrong_when_wide(x, indices, axis):
    found = np.take_along_axis(x, indices, axis)
    return found if x.shape[axis] < 5 else np.flip(found, axis)


#: what is planted in a namespace -> what a fault must say
NAMESPACES = {
    "no such name": ({"take_along_axis": None}, "`take_along_axis` is missing"),
    "no dtype": ({"float64": None}, "`float64` is missing"),
    "astype without copy": (
        {"astype": lambda x, dtype: x.astype(dtype)},
        "astype(index, x.dtype, copy=False) raises TypeError: ",
    ),
    "clip without min": (
        {"clip": lambda x, low, high: np.clip(x, low, high)},
        "clip(x, min=0.25) raises TypeError: ",
    ),
    "argsort without stable": (
        {"argsort": lambda x, axis: np.argsort(x, axis=axis)},
        "argsort(scores, axis=1, descending=True, stable=True) raises TypeError: ",
    ),
    "arange without device": (
        {"arange": lambda *args, dtype=None: np.arange(*args, dtype=dtype)},
        "arange(5, dtype=index.dtype, device=device) raises TypeError: ",
    ),
    "asarray without device": (
        {"asarray": np.array},
        "asarray(numpy_array, device=device) raises TypeError: ",
    ),
    "unstable argsort": (
        {"argsort": kept_order},
        "argsort(scores, axis=1, descending=True, stable=True) returns other values than NumPy: "
        "equal values must keep their order",
    ),
    "argmax of the last": (
        {"argmax": last_of_equals},
        "argmax(ties, axis=2) returns other values than NumPy: ties go to the first",
    ),
    "argsort that is unsigned": (
        {"argsort": lambda x, **options: xp.argsort(x, **options).astype("uint32")},  # type: ignore[attr-defined]
        "argsort(index, axis=1) returns dtype uint32; it must be a signed integer",
    ),
    "arange of another dtype": (
        {"arange": lambda *args, dtype=None, device=None: np.arange(*args).astype("int32")},
        "arange(5, dtype=index.dtype, device=device) returns dtype int32; it must be int64",
    ),
    "sum that widens": (
        {"sum": lambda x, axis, keepdims: np.sum(x, axis=axis, keepdims=keepdims, dtype="f8")},
        "sum(x, axis=-1, keepdims=True) returns dtype float64; it must be float32",
    ),
    "sum that drops the axis": (
        {"sum": lambda x, axis, keepdims: np.sum(x, axis=axis)},
        "sum(x, axis=-1, keepdims=True) returns shape (2, 3); it must be (2, 3, 1)",
    ),
    "isdtype that is always right": (
        {"isdtype": lambda dtype, kind: True},
        "isdtype(mask.dtype, 'integral') returns True; it must be False",
    ),
    "clip in place": (
        {"clip": lambda x, min=None, max=None: np.clip(x, min, max, out=x)},
        "clip(x, min=0.25) changes an argument; it must return a new array",
    ),
    "max that is a pair": (
        {"max": lambda x, axis: (np.max(x, axis), np.argmax(x, axis))},
        "max(x, axis=2) returns tuple; it must be an array",
    ),
    "seen by an algorithm only": (
        {"take_along_axis": wrong_when_wide},
        "bipartite_soft_matching(keys, r) returns other values than NumPy",
    ),
}


@pytest.mark.parametrize("planted", NAMESPACES)
def test_a_fault_of_a_namespace_is_found(planted):
    replaced, expected = NAMESPACES[planted]
    found = faults(namespace(**replaced))
    assert any(fault.startswith(expected) for fault in found), found
    assert faults(Backend("mylib", namespace(**replaced))) == found


def test_all_faults_at_once():
    replaced = NAMESPACES["astype without copy"][0] | NAMESPACES["argmax of the last"][0]
    found = faults(namespace(sort=None, where=None, **replaced))
    for name in ("`sort` is missing", "`where` is missing", "astype(", "argmax("):
        assert any(fault.startswith(name) for fault in found), (name, found)
    assert len(found) == 4, "none of them twice, and nothing that only follows from them"


@pytest.mark.parametrize("name", REQUIRED)
def test_each_missing_name_is_reported(name):
    """The check of a namespace names whichever function it lacks."""
    expected = f"`{name}` is missing"
    assert faults(namespace(**{name: None}))[0] == expected
    assert faults(Backend("mylib", namespace(**{name: None})))[0] == expected


def test_a_method_does_not_repeat_a_missing_name():
    """A scatter of a backend's own calls defaults, which need the name."""

    def scatter_add(base, index, updates):
        assigning(base, backend.batch_index(index), updates)

    backend = Backend("mylib", namespace(arange=None), scatter_add=scatter_add)
    assert faults(backend) == ["`arange` is missing"]


def assigning(base, index, updates):
    found = np.array(base)
    found[np.arange(len(index))[:, None], index] += updates
    return found


def in_place(base, index, updates):
    np.add.at(base, (np.arange(len(index))[:, None], index), updates)
    return base


def widening(base, index, updates):
    return in_place(np.array(base, dtype="float64"), index, updates)


#: what is planted in a backend -> the method, and what a fault must say
METHODS: dict[str, Any] = {
    "repeated indices are dropped": (
        {"scatter_add": assigning},
        "scatter_add(base, repeated indices, updates) of float32 returns other values than NumPy: "
        "updates of one row must accumulate",
    ),
    "the input changes": (
        {"scatter_add": in_place},
        "scatter_add(base, distinct indices, updates) of float64 changes an argument; it must return",
    ),
    "another dtype": (
        {"scatter_add": widening},
        "scatter_add(base, distinct indices, updates) of float32 returns dtype float64; it must be float32",
    ),
    "integers are refused": (
        {"scatter_add": lambda base, index, updates: in_place(base + 0.0, index, updates)},
        "scatter_add(base, repeated indices, updates) of int64 returns dtype float64; it must be int64",
    ),
    "a sum for a maximum": (
        {"scatter_max": Backend("sum", xp).scatter_add},
        "scatter_max(base, distinct indices, updates) of float32 returns other values",
    ),
    "no device": (
        {"device": lambda x: x.device_of_mine},
        "device(x) raises AttributeError: 'numpy.ndarray' object has no attribute 'device_of_mine'; "
        "give the backend a method `device`",
    ),
    "accumulate": (
        {"accumulate": lambda base, rows, updates: base},
        "accumulate(base, distinct rows, updates) of float32 returns other values",
    ),
    "accumulate_2d": (
        {"accumulate_2d": lambda base, index, updates: base},
        "accumulate_2d(base, repeated indices, updates) of int64 returns other values",
    ),
    "detach": ({"detach": lambda x: 0 * x}, "detach(x) returns other values"),
    "batch_index": (
        {"batch_index": lambda index: np.arange(len(index), dtype="int32")[:, None]},
        "batch_index(index) returns dtype int32; it must be int64",
    ),
    "batched_arange": (
        {"batched_arange": lambda index, *a: np.arange(*a)[None]},
        "batched_arange(index, 1, 8, 3) returns shape (1, 3); it must be (2, 3)",
    ),
    "flat_rows": (
        {"flat_rows": lambda index, rows: index.reshape(-1)},
        "flat_rows(index, 5) returns other values",
    ),
    "every_second": (
        {"every_second": lambda x, first: x[:, ::2]},
        "every_second(x, 1) returns shape (2, 2, 4); it must be (2, 1, 4)",
    ),
    "even_and_odd": (
        {"even_and_odd": lambda x, even, odd: (x[:, odd::2], x[:, odd::2])},
        "even_and_odd(x, 0, 1): even returns shape (2, 1, 4); it must be (2, 2, 4)",
    ),
    "take_range": (
        {"take_range": lambda index, start, stop, step: start + index},
        "take_range(index, 3, 11, 2) returns other values",
    ),
    "sum_in": (
        {"sum_in": lambda x, axis, dtype: x.max(axis)},
        "sum_in(keys, 2, keys.dtype) returns other values",
    ),
    "permute": (
        {"permute": lambda index, values: np.take_along_axis(values, index, axis=1)},
        "permute(index, values) returns other values",
    ),
    "products": (
        {"products": lambda a, b: b @ a.swapaxes(1, 2)},
        "products(x, y) returns other values",
    ),
    "norm": (
        {"norm": lambda x: np.abs(x).sum(2, keepdims=True)},
        "norm(x) returns other values",
    ),
    "max_rows": (
        {"max_rows": lambda x: (x.min(2), None)},
        "max_rows(x) returns other values",
    ),
    "places": (
        {"max_rows": lambda x: (x.max(2), last_of_equals(x, 2))},
        "argmax_rows(x, where, rows) returns other values than NumPy: ties go to the first",
    ),
    "argmax_rows": (
        {"argmax_rows": lambda x, where, rows: rows},
        "argmax_rows(x, None, rows) returns other values",
    ),
    "host_values": (
        {"host_values": lambda x: np.asarray(x)[:, ::-1]},
        "host_values(index) returns other values than NumPy",
    ),
}


@pytest.mark.parametrize("planted", METHODS)
def test_a_fault_of_a_backend_is_found(planted):
    replaced, expected = METHODS[planted]
    found = faults(Backend("mylib", xp, **replaced))
    assert any(fault.startswith(expected) for fault in found), found


def test_a_scatter_that_drops_repeated_indices_is_not_blamed_for_distinct_ones():
    found = faults(Backend("mylib", xp, scatter_add=assigning))
    assert {re.search(r"\w+ indices", fault)[0] for fault in found} == {"repeated indices"}


def test_every_method_is_tried():
    """A method without a planted fault might not be looked at."""
    public = {name for name, value in vars(Backend).items() if callable(value) and name[0] != "_"}
    tried = {name for replaced, _ in METHODS.values() for name in replaced}
    untried = {"accumulates", "add_rows", "add_sizes", "fused", "fuses_fully", "numbers"}
    untried |= {"first_rows", "on_host", "rows_of_pairs", "samples", "slots_of_rows"}
    untried |= {"average_rows", "tokens_of_rows"}
    assert public - tried == untried


class NoNumPy:
    """An array that only its own library can read."""

    shape, dtype, device = (2,), "float32", "cpu"


def test_arrays_that_numpy_cannot_read_need_a_way():
    unreadable = namespace(ones_like=lambda x: NoNumPy())
    found = faults(Backend("mylib", unreadable))
    assert any("pass `to_numpy=` to tomecore.backends.check" in fault for fault in found)
    check(xp, to_numpy=np.asarray)
    assert "to_numpy(array) raises ZeroDivisionError: division by zero" in faults(
        xp, to_numpy=lambda array: 1 / 0
    )


def test_no_way_into_the_library():
    found = faults(namespace(asarray=None))
    assert found == [
        "`asarray` is missing",
        "making an array of a NumPy array raises TypeError: "
        "the namespace has neither `asarray` nor `array`",
    ]


@pytest.mark.parametrize("value", [[1.0], 3, None], ids=repr)
def test_check_wants_a_library(value):
    with pytest.raises(ArgumentTypeError, match=r"expected an array .*; got builtins\."):
        check(value)


class Foreign(np.ndarray):
    """An array of a library that tomecore does not know."""

    __module__ = "mylib"


@pytest.mark.parametrize("planted", ["no such name", "astype without copy", "clip without min"])
def test_an_array_of_an_incomplete_library_is_refused_in_our_words(clean_registry, planted):
    replaced, expected = NAMESPACES[planted]
    backends.register("mylib", lambda: Backend("mylib", namespace(**replaced)))
    array = np.ones((2, 9, 4)).view(Foreign)
    for _ in range(2):
        with pytest.raises(UnsupportedLibraryError) as raised:
            tc.bipartite_soft_matching(array, 3)
        assert isinstance(raised.value, TomeError)
        assert isinstance(raised.value, TypeError)
        message = str(raised.value)
        assert message.startswith("tomecore cannot use arrays of mylib: ")
        assert f"\n  - {expected}" in message
        assert "tomecore.backends.register" in message
        assert "tomecore.backends.check" in message
    assert faults(array)[0].startswith(expected)


def test_a_name_is_not_needed_whose_users_a_backend_replaces(clean_registry):
    lacking = namespace(matmul=None, max=None)
    whole = Backend("whole", xp)
    methods = ("products", "scatter_add", "max_rows", "scatter_max")
    replaced = {name: getattr(whole, name) for name in methods}
    check(Backend("mylib", lacking, **replaced))
    backends.register("mylib", lambda: Backend("mylib", lacking, **replaced))
    tc.bipartite_soft_matching(np.ones((2, 9, 4)).view(Foreign), 3)
    del replaced["scatter_max"]
    assert faults(Backend("mylib", lacking, **replaced))[0] == "`max` is missing"


def test_a_library_is_looked_at_once(clean_registry, monkeypatch):
    looked = []
    gaps_of = backends.gaps_of
    monkeypatch.setattr(backends, "gaps_of", lambda b: looked.append(b.name) or gaps_of(b))
    backends.register("mylib", lambda: Backend("mylib", namespace()))
    for dtype in ("float32", "float64"):
        array = np.ones((2, 9, 4), dtype=dtype).view(Foreign)
        tc.merge_weighted(tc.bipartite_soft_matching(array, 3), array)
    for library in LIBRARIES.values():
        backend_of(library.to_array(np.ones(2)))
    assert looked == ["mylib"]
