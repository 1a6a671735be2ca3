"""Draw which patches were merged: each group in its mean colour, with its own outline."""

from __future__ import annotations

import colorsys

import numpy as np

from tomecore.core.checks import real_number, whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["OUTLINES", "check_opacity", "group_sizes", "make_visualization"]


def _outlines(count: int) -> np.ndarray:
    """Return (count, 2, 3) uint8: pairs of a light and a dark colour of one hue, the hues far apart."""
    golden = 0.618034  # hues at multiples of it never meet, and the next one is always far away
    found = [((255, 255, 255), (0, 0, 0))]
    for number in range(count - 1):
        pair = [
            colorsys.hsv_to_rgb(number * golden % 1, s, v) for s, v in ((0.35, 1.0), (1.0, 0.35))
        ]
        light, dark = (tuple(int(255 * channel) for channel in colour) for colour in pair)
        found.append((light, dark))  # type: ignore[arg-type]
    return np.array(found, dtype=np.uint8)


#: (64, 2, 3) uint8: the colours of outlines, each in a light form for dark groups and a dark form for
#: light ones
OUTLINES = _outlines(64)


def make_visualization(
    image: np.ndarray,
    source: np.ndarray,
    patch_size: int | tuple[int, int] = 16,
    prefix_tokens: int = 1,
    opacity: float = 1.0,
) -> np.ndarray:
    """Paint one image by its merged groups (the paper's figures: Bolya et al. 2023, figure 4).

    Args:
        image: (H, W, 3) uint8; H and W multiples of the patch size.
        source: (N,) int, original token -> slot: one row of ``model.tome.source``, or of what
            ``tomecore.visualization.sources_by_layer`` returns.
        patch_size: pixels on a side of one patch, or its (height, width).
        prefix_tokens: tokens before the first patch.
        opacity: how much of the image the mean colours cover, from 0 (only outlines are drawn on it) to 1.

    Returns:
        (H, W, 3) uint8: every group in its mean colour. An outline runs inside its edge: light in
        dark groups and dark in light ones, in a hue that no group next to it has, corners included.
        Patches of a group need not touch. Patches of fewer than 4 pixels on a side have no room for
        an outline: enlarge the image first.

    Raises:
        ArgumentTypeError: ``image`` is not uint8, ``source`` not of integers, or ``opacity`` not a number.
        ArgumentValueError: the shapes do not fit together, or ``opacity`` is not from 0 to 1.
    """
    height, width = _patch_size(patch_size)
    prefix = whole_number(prefix_tokens, "prefix_tokens")
    check_opacity(opacity)
    image, source = np.asarray(image), np.asarray(source)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ArgumentValueError(f"`image` must have shape (H, W, 3); got {image.shape}")
    if image.dtype != np.uint8:
        raise ArgumentTypeError(
            f"`image` must be uint8, from 0 to 255; got {image.dtype}. Convert pixels from 0 to 1 with "
            "(255 * image).round().astype(numpy.uint8)"
        )
    if not np.issubdtype(source.dtype, np.integer):
        raise ArgumentTypeError(f"`source` must hold integers; got {source.dtype}")
    rows, columns = image.shape[0] // height, image.shape[1] // width
    if (
        rows * columns == 0
        or image.shape[:2] != (rows * height, columns * width)
        or source.shape != (prefix + rows * columns,)
    ):
        raise ArgumentValueError(
            f"`source` must have {prefix} + H/{height} x W/{width} entries for an image of "
            f"{image.shape[0]} x {image.shape[1]} pixels, H and W multiples of {height} and {width}; "
            f"got shape {source.shape}"
        )
    group, count = _scan_order(source[prefix:].reshape(rows, columns))
    colours = _mean_colours(image, group, count, height, width)
    painted = np.repeat(np.repeat(colours[group], height, axis=0), width, axis=1)
    if opacity < 1:
        base = image.astype(np.float64)
        painted = np.floor(base + (painted - base) * opacity + 0.5).astype(np.uint8)
    if min(height, width) >= 4:
        _outline(painted, group, colours)
    return painted


def group_sizes(
    image: np.ndarray, source: np.ndarray, patch: tuple[int, int], prefix: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of patches in each group (n,), largest first, and their mean colours (n, 3) uint8.

    The arguments are those of :func:`make_visualization`. Groups of one size are in the order in which
    they appear in the image, row by row.
    """
    height, width = patch
    rows, columns = image.shape[0] // height, image.shape[1] // width
    group, count = _scan_order(source[prefix:].reshape(rows, columns))
    sizes = np.bincount(group.ravel(), minlength=count)
    order = np.argsort(-sizes, kind="stable")
    return sizes[order], _mean_colours(image, group, count, height, width)[order]


def check_opacity(value: float) -> None:
    """Raise unless ``value`` is a number from 0 to 1."""
    if not 0 <= real_number(value, "opacity") <= 1:
        raise ArgumentValueError(f"`opacity` must be from 0 to 1; got {value!r}")


def _patch_size(value: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ArgumentValueError(f"`patch_size` must be one number or two; got {value!r}")
    height, width = (whole_number(side, "patch_size", 1, unit="pixels") for side in sides)
    return height, width


def _scan_order(slots: np.ndarray) -> tuple[np.ndarray, int]:
    """Return (rows, columns) slots renumbered from 0, row by row from the upper left, and their number."""
    _, first, inverse = np.unique(slots, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse].reshape(slots.shape), len(first)


def _mean_colours(
    image: np.ndarray, group: np.ndarray, count: int, height: int, width: int
) -> np.ndarray:
    """Return (count, 3) uint8: the mean of all pixels of each group, rounded half up."""
    rows, columns = group.shape
    totals = image.reshape(rows, height, columns, width, 3).sum(axis=(1, 3), dtype=np.int64)
    flat = group.ravel()
    pixels = np.bincount(flat, minlength=count) * height * width
    sums = [
        np.bincount(flat, totals[..., channel].ravel(), minlength=count) for channel in range(3)
    ]
    return np.floor(np.stack(sums, axis=-1) / pixels[:, None] + 0.5).astype(np.uint8)


def _outline(painted: np.ndarray, group: np.ndarray, colours: np.ndarray) -> None:
    """Draw, in place, a line inside every group along its edges to other groups."""
    rows, columns = group.shape
    height, width = painted.shape[0] // rows, painted.shape[1] // columns
    thick = max(1, min(height, width) // 16)
    below = group[1:] != group[:-1]  # (rows - 1, columns): whether a line runs under the patch
    beside = group[:, 1:] != group[:, :-1]
    luminance = colours @ np.array([0.2126, 0.7152, 0.0722])
    lines = OUTLINES[_hues(group) % len(OUTLINES), (luminance >= 128).astype(int)]
    line = lines[group][:, :, None, None]  # (rows, columns, 1, 1, 3)
    cells = painted.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    sides = (
        (cells[:-1, :, -thick:], line[:-1], below),
        (cells[1:, :, :thick], line[1:], below),
        (cells[:, :-1, :, -thick:], line[:, :-1], beside),
        (cells[:, 1:, :, :thick], line[:, 1:], beside),
    )
    for pixels, colour, there in sides:
        np.copyto(pixels, colour, where=there[:, :, None, None, None])


def _hues(group: np.ndarray) -> np.ndarray:
    """Return (groups,) int: for each group the first number that no earlier group next to it has."""
    ends = (
        (group[:-1], group[1:]),
        (group[:, :-1], group[:, 1:]),
        (group[:-1, :-1], group[1:, 1:]),  # groups that meet at a corner are next to each other too
        (group[:-1, 1:], group[1:, :-1]),
    )
    pairs = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=-1) for a, b in ends])
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    touching: list[set[int]] = [set() for _ in range(int(group.max()) + 1)]
    for earlier, later in np.unique(np.sort(pairs, axis=1), axis=0).tolist():
        touching[later].add(earlier)
    hues: list[int] = []
    for others in touching:
        taken = {hues[other] for other in others}
        hues.append(next(hue for hue in range(len(taken) + 1) if hue not in taken))
    return np.array(hues)
