"""Partitions of grids and videos for :func:`tomecore.partition_matching`: which tokens may merge into which.

Each function returns ``(sources, destinations)``, ascending NumPy arrays of token numbers that a whole batch
shares. A token that is taken out of ``sources``, for example with ``numpy.setdiff1d``, does not merge. A
token that is taken out of both stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["partition_frames", "partition_grid"]


def partition_grid(
    grid: tuple[int, int],
    cell: tuple[int, int] = (2, 2),
    *,
    seed: int | None = None,
    prefix: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose one destination in each cell of a grid of tokens; the others are sources.

    This is the partition of tomesd (Bolya and Hoffman, Token Merging for Fast Stable Diffusion, 2023).

    Args:
        grid: (height, width) in tokens. Tokens are numbered row by row.
        cell: (height, width) of a cell in tokens, at most ``grid``. Cells are whole: the rows and columns
            beyond the last whole cell hold sources only.
        seed: the destination is drawn at random in each cell. NumPy draws its position, which is counted
            row by row: ``numpy.random.default_rng(seed).integers(positions, size=(1, rows, columns))``, for
            rows x columns cells. None: it is the upper left token.
        prefix: number of prefix tokens before the grid, 0 <= prefix. They are in neither array.

    Returns:
        sources and destinations, ascending int64.

    Raises:
        ArgumentTypeError: a number is not an integer, or ``grid`` or ``cell`` is not a pair.
        ArgumentValueError: a number is too small, or a cell is larger than the grid.
    """
    return partition_frames(1, grid, cell, seed=seed, prefix=prefix, whole_first_frame=False)


def partition_frames(
    frames: int,
    grid: tuple[int, int],
    cell: tuple[int, int] = (2, 2),
    *,
    seed: int | None = None,
    prefix: int = 0,
    merge_into_prefix: bool = False,
    whole_first_frame: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the destinations in a video: one in each cell of each frame, and all patches of the first.

    This is the partition of FastVGGT (Shen et al., 2025), except that FastVGGT also protects every n-th
    token. Tokens are numbered frame by frame: the prefix tokens of a frame, then its patches, row by row.

    Args:
        frames: number of frames or views, at least 1.
        grid: (height, width) of each frame in patches.
        cell: (height, width) of a cell in patches, as in :func:`partition_grid`.
        seed: the destinations are drawn at random, separately for each frame, as in :func:`partition_grid`,
            with ``size=(frames, rows, columns)``. None: they are the upper left patches of the cells.
        prefix: number of prefix tokens of each frame (camera and register tokens), 0 <= prefix.
        merge_into_prefix: whether prefix tokens are destinations. By default they are in neither array, and
            stay as they are.
        whole_first_frame: whether all patches of the first frame are destinations, so that the frame that the
            others are aligned to keeps its detail. False: it is divided into cells like the others.

    Returns:
        sources and destinations, ascending int64.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`partition_grid`.
    """
    frames = whole_number(frames, "frames", at_least=1)
    height, width = _pair(grid, "grid")
    cell_height, cell_width = _pair(cell, "cell")
    if cell_height > height or cell_width > width:
        raise ArgumentValueError(
            f"`cell` must fit into the grid of {height} x {width} tokens, or there is no destination; "
            f"got {cell_height} x {cell_width}. Use a smaller cell."
        )
    prefix = whole_number(prefix, "prefix")
    # Rows and columns of cells; within each cell, the position of its destination.
    rows, columns = height // cell_height, width // cell_width
    place = np.zeros((frames, rows, columns), dtype=np.int64)
    if seed is not None:
        generator = np.random.default_rng(whole_number(seed, "seed"))
        place = generator.integers(cell_height * cell_width, size=place.shape)
    frame, row, column = np.indices(place.shape)
    destination = np.zeros((frames, height, width), dtype=bool)
    destination[
        frame, row * cell_height + place // cell_width, column * cell_width + place % cell_width
    ] = True
    if whole_first_frame:
        destination[0] = True

    merged_into = np.zeros((frames, prefix + height * width), dtype=bool)
    merged_into[:, :prefix] = merge_into_prefix
    merged_into[:, prefix:] = destination.reshape(frames, -1)
    merges = ~merged_into
    merges[:, :prefix] = False
    return np.flatnonzero(merges), np.flatnonzero(merged_into)


def _pair(value: Any, name: str) -> tuple[int, int]:
    """Return (height, width) as ints of at least 1."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ArgumentTypeError(
            f"`{name}` must be a pair, (height, width) in tokens; got {value!r} ({type(value).__name__})"
        )
    height, width = (whole_number(one, name, at_least=1, unit="tokens") for one in value)
    return height, width
