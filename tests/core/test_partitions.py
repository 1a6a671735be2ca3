"""Partitions of grids and frames are those of the reference, and tomesd's matching is three lines on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference

import tomecore as tc
from tomecore.matching import partitions

GRIDS = [((4, 6), (2, 2)), ((4, 6), (2, 3)), ((5, 7), (2, 2)), ((5, 7), (3, 2)), ((1, 5), (1, 2))]
GRIDS += [((3, 3), (3, 3)), ((3, 4), (1, 1)), ((2, 9), (2, 4))]
IDS = {"ids": lambda pair: f"{pair[0]} by {pair[1]}"}


def lists(pair):
    """As lists; both are ascending int64 and share no token."""
    for array in pair:
        assert array.dtype == np.int64
        assert (np.diff(array) > 0).all()
    sources, destinations = (array.tolist() for array in pair)
    assert not set(sources) & set(destinations)
    return sources, destinations


def places(frames, grid, cell, seed):
    """The numbers that NumPy draws, as the docstring says."""
    shape = frames, grid[0] // cell[0], grid[1] // cell[1]
    return np.random.default_rng(seed).integers(cell[0] * cell[1], size=shape).tolist()


@pytest.mark.parametrize(("grid", "cell"), GRIDS, **IDS)
def test_grids(grid, cell):
    assert lists(partitions.partition_grid(grid, cell)) == reference.grid(grid[0], grid[1], cell)
    for seed in (0, 33):
        wanted = reference.grid(grid[0], grid[1], cell, places(1, grid, cell, seed)[0])
        assert lists(partitions.partition_grid(grid, cell, seed=seed)) == wanted


def test_grids_by_hand():
    assert lists(partitions.partition_grid((2, 4))) == ([1, 3, 4, 5, 6, 7], [0, 2])
    assert lists(partitions.partition_grid([3, 3], [2, 2])) == ([1, 2, 3, 4, 5, 6, 7, 8], [0])
    assert lists(partitions.partition_grid((2, 3), (2, 1), prefix=2)) == ([5, 6, 7], [2, 3, 4])


def test_every_position_of_a_cell_is_drawn():
    seen = {partitions.partition_grid((2, 2), seed=seed)[1].tolist()[0] for seed in range(40)}
    assert seen == {0, 1, 2, 3}
    drawn = partitions.partition_grid((64, 64), seed=0)[1]
    again, other = (partitions.partition_grid((64, 64), seed=seed)[1] for seed in (0, 1))
    assert (drawn == again).all()
    assert (drawn != other).any()


@pytest.mark.parametrize(("grid", "cell"), GRIDS, **IDS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_frames(grid, cell, prefix):
    for frames, seed, into_prefix, whole in itertools.product(
        (1, 3), (None, 33), (False, True), (False, True)
    ):
        found = partitions.partition_frames(
            frames,
            grid,
            cell,
            seed=seed,
            prefix=prefix,
            merge_into_prefix=into_prefix,
            whole_first_frame=whole,
        )
        sources, destinations = [], []
        for frame in range(frames):
            chosen = None if seed is None else places(frames, grid, cell, seed)[frame]
            merging, staying = reference.grid(grid[0], grid[1], cell, chosen)
            if frame == 0 and whole:
                merging, staying = [], sorted(merging + staying)
            first = frame * (prefix + grid[0] * grid[1])
            destinations += [first + token for token in range(prefix if into_prefix else 0)]
            destinations += [first + prefix + token for token in staying]
            sources += [first + prefix + token for token in merging]
        assert lists(found) == (sources, destinations)


def test_frames_draw_other_destinations():
    _, destinations = partitions.partition_frames(3, (8, 8), seed=0, whole_first_frame=False)
    first, second, third = (destinations.reshape(3, 16) % 64).tolist()
    assert first != second != third


def tomesd(keys, height, width, cell, place, r):
    """Merging as tomesd does it, in loops: the r best sources, each into its best destination."""
    sources, destinations = reference.grid(height, width, cell, place)
    best = [reference.most_similar(keys, token, destinations) for token in sources]
    strongest_first = sorted(range(len(sources)), key=lambda i: -best[i][1])
    return {sources[i]: destinations[best[i][0]] for i in strongest_first[:r]}


@pytest.mark.parametrize("r", [0, 5, 17, 26])
def test_tomesd(library, rng, r):
    """An image of 5 x 7 tokens: which tokens share a value after unmerging."""
    keys = rng.normal(size=(2, 35, 6))
    sources, destinations = partitions.partition_grid((5, 7), (2, 2), seed=4)
    plan = tc.partition_matching(library.to_array(keys), sources, destinations, r=r)
    merge, unmerge = plan
    back = library.to_numpy(unmerge(merge(library.to_array(keys))))
    for sample, one in zip(back, keys, strict=True):
        into = tomesd(one, 5, 7, (2, 2), places(1, (5, 7), (2, 2), 4)[0], r)
        assert len(into) == r
        for token in range(35):
            destination = into.get(token, token)
            group = [destination, *(t for t, d in into.items() if d == destination)]
            np.testing.assert_allclose(sample[token], one[group].mean(axis=0), rtol=1e-12)


def test_more_protected_tokens(library, rng):
    """As in FastVGGT, every tenth token is taken out of the sources; it may be a destination."""
    keys = rng.normal(size=(1, 3 * 14, 6))
    sources, destinations = partitions.partition_frames(
        3, (3, 4), seed=33, prefix=2, merge_into_prefix=True
    )
    sources = np.setdiff1d(sources, np.arange(0, 42, 10))
    plan = tc.partition_matching(library.to_array(keys), sources, destinations)
    wanted = reference.partition(keys[0], sources.tolist(), destinations.tolist())
    assert library.to_numpy(plan.slots).tolist() == [wanted.slots()]
    assert {0, 10, 20, 30, 40} <= set(library.to_numpy(plan.kept)[0].tolist())
