"""Matching within a partition gives the plan of the reference, in every chunk size and in bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import reference
import torch
from libraries import LIBRARIES
from torch.utils._python_dispatch import TorchDispatchMode

import tomecore as tc
from tomecore.backends import Backend, backend_of
from tomecore.matching import partitions, similarity

#: tokens, sources, destinations: of all tokens, of some, of one destination, of one source, and of none
SIZES = [(12, 8, 4), (17, 6, 5), (9, 8, 1), (9, 1, 8), (2, 1, 1), (5, 0, 3), (4, 0, 0)]


def same_plan(plan, expected, library) -> None:
    """Assert that ``plan`` equals ``expected``, the reference's plan of each sample."""
    for name in ("kept", "merged", "into"):
        found = library.to_numpy(getattr(plan, name))
        wanted = np.array([getattr(one, name) for one in expected], dtype=int)
        np.testing.assert_array_equal(found, wanted.reshape(len(expected), -1), name)
        assert found.dtype.kind == "i"
    slots = library.to_numpy(plan.slots)
    np.testing.assert_array_equal(slots, [one.slots() for one in expected], "slots")
    assert plan.num_merged == len(expected[0].merged)


def draw(rng, tokens, sources, destinations):
    """Two disjoint lists of token numbers, in no order."""
    numbers = rng.permutation(tokens)
    return numbers[:sources], numbers[sources : sources + destinations]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("chunk", [None, 1, 3, 8, 100])
def test_one_partition_for_the_batch(library, rng, size, chunk):
    for r in {None, 0, 1, size[1] // 2, size[1]}:
        if r is not None and r > size[1]:
            continue
        keys = rng.normal(size=(2, size[0], 6))
        sources, destinations = draw(rng, *size)
        plan = tc.partition_matching(library.to_array(keys), sources, destinations, r, chunk=chunk)
        wanted = [reference.partition(one, [*sources], [*destinations], r) for one in keys]
        same_plan(plan, wanted, library)


@pytest.mark.parametrize("native", [True, False], ids=["of the library", "of NumPy"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_a_partition_for_each_sample(library, rng, native, dtype):
    keys = rng.normal(size=(3, 13, 6))
    drawn = [draw(rng, 13, 7, 4) for _ in keys]
    for r, chunk in ((None, 2), (3, 2), (3, None), (7, 3)):
        sources, destinations = (
            np.array([pair[side] for pair in drawn], dtype=dtype) for side in (0, 1)
        )
        wanted = [
            reference.partition(one, [*pair[0]], [*pair[1]], r)
            for one, pair in zip(keys, drawn, strict=True)
        ]
        if native:
            sources, destinations = library.to_array(sources), library.to_array(destinations)
        plan = tc.partition_matching(library.to_array(keys), sources, destinations, r, chunk=chunk)
        same_plan(plan, wanted, library)


def test_one_side_for_the_batch_and_one_for_each_sample(library, rng):
    keys = rng.normal(size=(2, 9, 6))
    sources, destinations = np.array([[0, 1, 2], [2, 5, 0]]), np.array([7, 4])
    plan = tc.partition_matching(library.to_array(keys), sources, library.to_array(destinations), 2)
    wanted = [
        reference.partition(one, [*row], [7, 4], 2) for one, row in zip(keys, sources, strict=True)
    ]
    same_plan(plan, wanted, library)


def test_slots_are_ascending_and_what_is_left_out_stays(library, rng):
    keys, x = rng.normal(size=(2, 2, 15, 6))
    sources, destinations = np.array([14, 3, 8, 1]), np.array([11, 2])
    plan = tc.partition_matching(library.to_array(keys), sources, destinations)
    kept = [0, 2, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert library.to_numpy(plan.kept).tolist() == [kept, kept]
    assert library.to_numpy(plan.merged).tolist() == [[14, 3, 8, 1]] * 2
    merged = library.to_numpy(plan.merge(library.to_array(x)))
    for slot, token in enumerate(kept):
        assert (merged[:, slot] == x[:, token]).all() == (token not in destinations)
    back = library.to_numpy(plan.unmerge(library.to_array(merged)))
    np.testing.assert_array_equal(back[:, [0, 4, 13]], x[:, [0, 4, 13]])


def test_it_is_bipartite_matching_of_even_and_odd_tokens(library, rng):
    """The same tokens go into the same tokens; only the slots have another order."""
    keys = library.to_array(rng.normal(size=(2, 24, 6)))
    for r in (1, 5, 12):
        pairs = []
        for plan in (
            tc.bipartite_soft_matching(keys, r),
            tc.partition_matching(keys, np.arange(0, 24, 2), np.arange(1, 24, 2), r),
        ):
            kept, merged, into = map(library.to_numpy, (plan.kept, plan.merged, plan.into))
            pairs.append(
                [
                    sorted(zip(m.tolist(), k[i].tolist(), strict=True))
                    for k, m, i in zip(kept, merged, into, strict=True)
                ]
            )
        assert pairs[0] == pairs[1]


EQUAL = np.ones((2, 12, 4))
#: units whose products are exact, so that equal similarities are equal in every library and chunk
KINDS = np.concatenate([np.eye(4), -np.eye(4), np.ones((1, 4)), np.zeros((1, 4))])


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_ties_go_to_the_first(library, rng, chunk):
    """The first of the sources and the first of the destinations, as the lists have them."""
    sources, destinations = np.array([10, 3, 0, 7]), np.array([5, 9, 1])
    plan = tc.partition_matching(library.to_array(EQUAL), sources, destinations, 2, chunk=chunk)
    assert library.to_numpy(plan.merged).tolist() == [[10, 3]] * 2
    assert library.to_numpy(plan.slots)[:, [10, 3, 5]].tolist() == [[4, 4, 4]] * 2
    for dtype in ("float32", "float64"):
        keys = KINDS[rng.integers(0, len(KINDS), (2, 20))].astype(dtype)
        sources, destinations = draw(rng, 20, 11, 7)
        for r in (None, 1, 4, 7):
            plan = tc.partition_matching(
                library.to_array(keys), sources, destinations, r, chunk=chunk
            )
            wanted = [reference.partition(one, [*sources], [*destinations], r) for one in keys]
            same_plan(plan, wanted, library)


def test_many_ties_are_sorted_stably(library):
    keys = library.to_array(np.ones((1, 4000, 4)))
    plan = tc.partition_matching(
        keys, np.arange(0, 4000, 2), np.arange(1, 4000, 2), 1500, chunk=333
    )
    np.testing.assert_array_equal(library.to_numpy(plan.merged)[0], np.arange(0, 3000, 2))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_half_precision_keys_are_compared_in_float32(name):
    library = LIBRARIES[name]
    keys = np.random.default_rng(3).normal(size=(2, 160, 6)).astype("float16")
    sources, destinations = partitions.partition_grid((10, 16))
    plan = tc.partition_matching(library.to_array(keys), sources, destinations, 40, chunk=17)
    lists = sources.tolist(), destinations.tolist()
    same_plan(plan, [reference.partition(one, *lists, 40) for one in keys.astype("f8")], library)


VIEWS = {
    "heads": lambda array: array[:, :, 0, :],
    "every other token": lambda array: array[:, ::2, 1, :],
    "behind the first": lambda array: array[:, 3:, 1, :],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_strided_keys(library, rng, view):
    whole = rng.normal(size=(2, 28, 2, 6))
    sources, destinations = [1, 4, 7, 9, 2], [3, 0, 11]
    plan = tc.partition_matching(
        view(library.to_array(whole)), np.array(sources), np.array(destinations), 3, chunk=2
    )
    wanted = [reference.partition(one, sources, destinations, 3) for one in view(whole)]
    same_plan(plan, wanted, library)


class TestMemory:
    """80 million pairs, which would be 320 MB in one array."""

    TOKENS, TARGETS, WIDTH = 42_000, 2_000, 16
    MILLION = 1_000_000

    @pytest.fixture
    def keys(self):
        generator = np.random.default_rng(0)
        return generator.standard_normal((1, self.TOKENS, self.WIDTH), dtype=np.float32)

    @pytest.fixture
    def partition(self):
        numbers = np.random.default_rng(1).permutation(self.TOKENS)
        return np.sort(numbers[self.TARGETS :]), np.sort(numbers[: self.TARGETS])

    @pytest.mark.parametrize(("chunk", "limit"), [(None, 90), (500, 25)], ids=str)
    def test_numpy(self, keys, partition, chunk, limit):
        tracemalloc.start()
        try:
            plan = tc.partition_matching(keys, *partition, chunk=chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert plan.num_slots == self.TARGETS
        assert peak < limit * self.MILLION
        if chunk is None:
            assert peak > 60 * self.MILLION, "the chunk is smaller than documented"

    @pytest.mark.parametrize("r", [None, 1000])
    def test_torch(self, keys, partition, r):
        """The largest array of all operations, not only of the product."""
        with Largest() as found:
            tc.partition_matching(torch.from_numpy(keys), *partition, r, chunk=500)
        assert 500 * self.TARGETS <= found.numbers <= 500 * self.TARGETS + self.TOKENS

    def test_the_largest_array_is_noticed(self, keys):
        with Largest() as found:
            tc.bipartite_soft_matching(torch.from_numpy(keys[:, :4000]), 5)
        assert found.numbers >= 2000 * 2000

    def test_products(self, library, keys, partition, monkeypatch):
        """On every library, in the default chunk too."""
        shapes, multiply = [], type(backend_of(library.to_array(keys[:, :1]))).products

        def products(self, a, b):
            shapes.append((a.shape[1], b.shape[1]))
            return multiply(self, a, b)

        monkeypatch.setattr(similarity, "_CHUNK", 2**20)
        monkeypatch.setattr(type(backend_of(library.to_array(keys[:, :1]))), "products", products)
        few = partition[0][:2000], partition[1]
        tc.partition_matching(library.to_array(keys), *few)
        assert {targets for _, targets in shapes} == {self.TARGETS}
        assert sum(sources for sources, _ in shapes) == 2000
        assert max(sources for sources, _ in shapes) == 2**20 // (self.TARGETS + self.WIDTH) == 520


class Largest(TorchDispatchMode):
    """Note the numbers in the largest result of an operation of torch."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found


def test_wide_keys_have_smaller_chunks(monkeypatch, rng):
    """With few destinations, the units of the sources are what takes memory."""
    keys, rows = rng.normal(size=(1, 400, 64)), []
    original = similarity.unit_keys

    def unit_keys(backend, keys):
        rows.append(keys.shape[1])
        return original(backend, keys)

    monkeypatch.setattr(similarity, "unit_keys", unit_keys)
    monkeypatch.setattr(similarity, "_CHUNK", 6600)
    tc.partition_matching(keys, np.arange(398), np.arange(398, 400))
    assert rows == [2, 100, 100, 100, 98]


def test_unknown_libraries_have_no_dense_scatter(rng):
    """The defaults of Backend scatter by a one-hot matrix, which would be tokens x sources."""

    class NoScatter(Backend):
        def _hits(self, base, index):
            raise AssertionError("a dense scatter")

    keys = rng.normal(size=(2, 15, 4))
    backend = NoScatter("defaults", backend_of(keys).xp)
    sources, destinations = draw(rng, 15, 8, 4)
    plan = tc.partition_matching(keys, sources, destinations, 5, backend=backend)
    wanted = [reference.partition(one, [*sources], [*destinations], 5) for one in keys]
    same_plan(plan, wanted, LIBRARIES["numpy"])
