"""Errors name the wrong part of a partition wherever its numbers can be read; nothing is changed."""

from __future__ import annotations

import copy
import re

import numpy as np
import paddle
import pytest
import torch
from libraries import LIBRARIES

import tomecore as tc
from tomecore.backends import backend_of
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError
from tomecore.matching import partitions

KEYS = np.random.default_rng(0).normal(size=(2, 9, 4))
SOURCES, DESTINATIONS = np.array([0, 3, 4, 8]), np.array([5, 2])


@pytest.fixture
def keys(library):
    return library.to_array(KEYS)


@pytest.fixture(params=[True, False], ids=["of the library", "of NumPy"])
def indices(request, library):
    """Build arrays of indices."""
    return library.to_array if request.param else LIBRARIES["numpy"].to_array


def raises(error, *parts):
    """A tomecore error that is also the built-in one, whose message holds all ``parts`` in order."""
    builtin = {ArgumentValueError: ValueError, ArgumentTypeError: TypeError}[error]
    assert issubclass(error, TomeError)
    assert issubclass(error, builtin)
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


def test_nothing_is_mutated(library, indices, keys):
    sources, destinations = indices(SOURCES), indices(DESTINATIONS)
    rows = indices(np.array([SOURCES, SOURCES[::-1]]))
    for given in (sources, rows):
        for r, chunk in ((None, 1), (2, 3), (0, None)):
            plan = tc.partition_matching(keys, given, destinations, r, chunk=chunk)
            plan.unmerge(plan.merge(keys))
    assert np.asarray(sources).tolist() == SOURCES.tolist()
    assert np.asarray(rows).tolist() == [SOURCES.tolist(), SOURCES[::-1].tolist()]
    assert np.asarray(destinations).tolist() == DESTINATIONS.tolist()
    np.testing.assert_array_equal(library.to_numpy(keys), KEYS)


@pytest.mark.parametrize("shape", [(9,), (9, 4), (1, 2, 9, 4)], ids=str)
def test_rank_of_keys(library, shape):
    with raises(ArgumentValueError, "`keys`", "(B, N, D)", str(shape), "batch, tokens, channels"):
        tc.partition_matching(library.to_array(np.ones(shape)), SOURCES, DESTINATIONS)


def test_dtype_of_keys(library):
    with raises(ArgumentTypeError, "`keys`", "real floating point", "int64"):
        tc.partition_matching(library.to_array(KEYS.astype("int64")), SOURCES, DESTINATIONS)


@pytest.mark.parametrize("name", ["sources", "destinations"])
class TestIndices:
    """Either list of token numbers: its type, dtype, shape and values."""

    def call(self, keys, name, array, **options):
        given = {"sources": SOURCES, "destinations": DESTINATIONS, name: array}
        return tc.partition_matching(keys, **given, **options)

    @pytest.mark.parametrize("value", [[0, 3], (0, 3), None, 3, "03", range(2)], ids=repr)
    def test_no_array(self, library, keys, name, value):
        kind = f"got builtins.{type(value).__name__}"
        with raises(
            ArgumentTypeError,
            f"`{name}`",
            f"NumPy or the library of the keys, {library.name}",
            kind,
            "numpy.asarray",
        ):
            self.call(keys, name, value)

    def test_another_library(self, library, keys, name):
        make = torch.tensor if library.name != "torch" else paddle.to_tensor
        with raises(ArgumentTypeError, f"`{name}`", f"of the keys, {library.name}", "Tensor"):
            self.call(keys, name, make([0, 3]))

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
    def test_dtype(self, indices, keys, name, dtype):
        with raises(ArgumentTypeError, f"`{name}` must hold integers", dtype):
            self.call(keys, name, indices(np.ones(1, dtype=dtype)))

    @pytest.mark.parametrize("shape", [(), (1, 2, 1)], ids=str)
    def test_rank(self, indices, keys, name, shape):
        letter = "S" if name == "sources" else "T"
        with raises(ArgumentValueError, f"`{name}`", f"({letter},)", f"(B, {letter})", str(shape)):
            self.call(keys, name, indices(np.ones(shape, dtype="int64")))

    @pytest.mark.parametrize("batch", [1, 3])
    def test_batch(self, indices, keys, name, batch):
        with raises(
            ArgumentValueError, f"`{name}` must have 2 samples on axis 0", "`keys`", f"({batch}, 1)"
        ):
            self.call(keys, name, indices(np.ones((batch, 1), dtype="int64")))

    @pytest.mark.parametrize("wrong", [9, -1, 100])
    def test_out_of_range(self, indices, keys, name, wrong):
        message = (f"`{name}`", "from 0 to 8", f"got {wrong}. Count the tokens of `keys` from 0")
        with raises(ArgumentValueError, *message):
            self.call(keys, name, indices(np.array([1, wrong])))
        with raises(
            ArgumentValueError, f"`{name}`", "from 0 to 8", f"got {wrong} in sample 1. Count"
        ):
            self.call(keys, name, indices(np.array([[1, 6], [1, wrong]])))

    def test_repeated(self, indices, keys, name):
        with raises(
            ArgumentValueError, f"`{name}`", "once", "token 6 more than once.", "numpy.unique"
        ):
            self.call(keys, name, indices(np.array([6, 1, 6])))
        with raises(
            ArgumentValueError, f"`{name}`", "token 1 more than once in sample 1. Leave out"
        ):
            self.call(keys, name, indices(np.array([[6, 1], [1, 1]])))

    def test_overlapping(self, indices, keys, name):
        other = {"sources": DESTINATIONS, "destinations": SOURCES}[name]
        shared = int(other[1])
        message = ("`sources` and `destinations` must not overlap", f"token {shared} in both")
        with raises(ArgumentValueError, *message, "Leave it out of one", "numpy.setdiff1d"):
            self.call(keys, name, indices(np.array([6, shared])))
        with raises(ArgumentValueError, *message, "in sample 1. Leave"):
            self.call(keys, name, indices(np.array([[6, 1], [6, shared]])))

    def test_values_that_cannot_be_read_are_not_checked(self, keys, name):
        """As on a GPU: the plan is meaningless, but nothing waits."""
        blind = copy.copy(backend_of(keys))
        blind.host_values = lambda x: None
        assert self.call(keys, name, np.array([6, 6]), backend=blind).num_slots <= 7


def test_too_many(library, indices, keys):
    """Known from the shapes, so it is an error where no values can be read."""
    with raises(
        ArgumentValueError, "must not overlap", "at most 9 tokens", "got 10", "numpy.unique"
    ):
        tc.partition_matching(keys, indices(np.arange(8)), indices(DESTINATIONS))


def test_no_destination(indices, keys):
    none = np.zeros(0, dtype="int64")
    for r in (None, 0, 2):
        with raises(
            ArgumentValueError, "`destinations`", "at least one", "4 `sources`", "(0,)", "empty"
        ):
            tc.partition_matching(keys, indices(SOURCES), indices(none), r)
    for destinations in (none, DESTINATIONS):
        plan = tc.partition_matching(keys, indices(none), indices(destinations))
        assert (plan.num_merged, plan.num_slots) == (0, 9)


@pytest.mark.parametrize("value", ["2", 1.5, 2.0, True, (2,), np.float64(2)], ids=repr)
def test_numbers_that_are_no_integers(keys, value):
    with raises(ArgumentTypeError, "`r`", "integer of at least 0", repr(value)):
        tc.partition_matching(keys, SOURCES, DESTINATIONS, value)
    with raises(
        ArgumentTypeError, "`chunk`", "integer of at least 1 (counting sources)", repr(value)
    ):
        tc.partition_matching(keys, SOURCES, DESTINATIONS, chunk=value)


def test_numbers_out_of_range(keys):
    with raises(ArgumentValueError, "`r`", "at least 0", "got -1", "Use 0 to merge nothing"):
        tc.partition_matching(keys, SOURCES, DESTINATIONS, -1)
    with raises(ArgumentValueError, "`r` must be at most 4", "`sources`", "got 5", "Leave it out"):
        tc.partition_matching(keys, SOURCES, DESTINATIONS, 5)
    for chunk in (0, -3):
        with raises(ArgumentValueError, "`chunk`", "at least 1", f"got {chunk}"):
            tc.partition_matching(keys, SOURCES, DESTINATIONS, chunk=chunk)


def test_chunks_may_be_larger_than_the_sources(library, keys):
    plans = [
        tc.partition_matching(keys, SOURCES, DESTINATIONS, np.int64(3), chunk=chunk)
        for chunk in (None, 4, 10**12, np.int64(2))
    ]
    for plan in plans[1:]:
        np.testing.assert_array_equal(
            library.to_numpy(plan.slots), library.to_numpy(plans[0].slots)
        )


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i8", ">u4"])
def test_any_integers_of_numpy(library, keys, dtype):
    plan = tc.partition_matching(keys, SOURCES.astype(dtype), DESTINATIONS.astype(dtype), 3)
    wanted = tc.partition_matching(keys, SOURCES, DESTINATIONS, 3)
    np.testing.assert_array_equal(library.to_numpy(plan.slots), library.to_numpy(wanted.slots))


@pytest.mark.parametrize("wrong", [(4,), 4, "44", (4, 4, 4), None, np.array(4)], ids=repr)
def test_pairs(wrong):
    with raises(
        ArgumentTypeError, "`grid` must be a pair, (height, width)", "got", type(wrong).__name__
    ):
        partitions.partition_grid(wrong)
    with raises(ArgumentTypeError, "`cell` must be a pair, (height, width)"):
        partitions.partition_frames(2, (4, 4), wrong)


@pytest.mark.parametrize(("wrong", "error"), [(0, ArgumentValueError), (2.0, ArgumentTypeError)])
def test_numbers_of_partitions(wrong, error):
    for side in ((wrong, 4), (4, wrong)):
        with raises(error, "`grid`", "integer of at least 1", repr(wrong)):
            partitions.partition_grid(side)
        with raises(error, "`cell`", "integer of at least 1", repr(wrong)):
            partitions.partition_grid((4, 4), side)
    with raises(error, "`frames`", "integer of at least 1", repr(wrong)):
        partitions.partition_frames(wrong, (4, 4))
    for name in ("prefix", "seed"):
        with raises(ArgumentTypeError, f"`{name}`", "integer of at least 0", "'1'"):
            partitions.partition_grid((4, 4), **{name: "1"})
        with raises(ArgumentValueError, f"`{name}`", "integer of at least 0", "-1"):
            partitions.partition_frames(2, (4, 4), **{name: -1})


@pytest.mark.parametrize("cell", [(5, 2), (2, 7), (9, 9)], ids=str)
def test_cells_larger_than_the_grid(cell):
    with raises(
        ArgumentValueError, "`cell` must fit", "4 x 6", f"got {cell[0]} x {cell[1]}", "smaller"
    ):
        partitions.partition_grid((4, 6), cell)
