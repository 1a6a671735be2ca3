"""The image of merged tokens: mean colours, outlines, and errors that say what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.visualization import OUTLINES, make_visualization

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def test_groups_get_their_mean_colour() -> None:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[:, :4] = (10, 20, 30)
    image[:, 4:] = (30, 41, 50)
    one = make_visualization(image, np.array([0, 1, 1]), patch_size=4)
    np.testing.assert_array_equal(one, np.broadcast_to([20, 31, 40], image.shape))


def test_a_line_of_its_own_runs_inside_each_group() -> None:
    image = np.zeros((8, 16, 3), dtype=np.uint8)
    image[:, :8] = (10, 20, 30)
    image[:, 8:] = (210, 220, 230)
    painted = make_visualization(image, np.array([0, 2, 1]), patch_size=8)
    np.testing.assert_array_equal(painted[:, :7], image[:, :7])
    np.testing.assert_array_equal(painted[:, 9:], image[:, 9:])
    assert (painted[:, 7] == OUTLINES[0, 0]).all()  # light on dark
    assert (painted[:, 8] == OUTLINES[1, 1]).all()  # dark on light, of another hue


def test_patches_of_a_group_need_not_touch() -> None:
    image = np.arange(3 * 4 * 12, dtype=np.uint8).reshape(4, 12, 3)
    painted = make_visualization(image, np.array([7, 3, 7]), patch_size=4, prefix_tokens=0)
    mean = np.concatenate([image[:, :4], image[:, 8:]], axis=1).reshape(-1, 3).mean(0)
    np.testing.assert_array_equal(painted[0, 0], np.floor(mean + 0.5))
    np.testing.assert_array_equal(painted[3, 11], painted[0, 0])


def by_loops(
    image: np.ndarray, source: np.ndarray, patch: tuple[int, int], prefix: int
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) group of each pixel, and (H, W) whether it is next to another one, pixel by pixel."""
    height, width = image.shape[:2]
    group = np.empty((height, width), dtype=int)
    for y in range(height):
        for x in range(width):
            at = (y // patch[0]) * (width // patch[1]) + x // patch[1]
            group[y, x] = source[prefix + at]
    edge = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                other = y + down, x + right
                if 0 <= other[0] < height and 0 <= other[1] < width:
                    edge[y, x] |= group[other] != group[y, x]
    return group, edge


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("patch", "grid"), [(4, (5, 3)), ((4, 7), (2, 6)), (16, (3, 3))])
def test_any_patch_and_any_grid(
    rng: np.random.Generator, patch: Any, grid: tuple[int, int], prefix: int
) -> None:
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    image = rng.integers(0, 256, (grid[0] * high, grid[1] * wide, 3)).astype(np.uint8)
    image[: image.shape[0] // 2] //= 4  # dark groups and light ones
    source = rng.integers(0, 5, prefix + grid[0] * grid[1])
    before = image.copy(), source.copy()
    painted = make_visualization(image, source, patch, prefix)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(source, before[1])
    assert painted.shape == image.shape
    assert painted.dtype == np.uint8
    group, edge = by_loops(image, source, (high, wide), prefix)
    lines = {}
    for slot in np.unique(group):
        mine = group == slot
        mean = np.floor(image[mine].astype(float).mean(0) + 0.5)
        assert (painted[mine & ~edge] == mean).all()
        (line,) = np.unique(painted[mine & edge], axis=0)
        assert abs(line @ LUMINANCE - mean @ LUMINANCE) > 40
        hues = np.flatnonzero((line == OUTLINES).all(-1).any(-1))
        lines[slot] = hues
    ends = [(group[1:], group[:-1]), (group[:, 1:], group[:, :-1])]
    ends += [(group[1:, 1:], group[:-1, :-1]), (group[1:, :-1], group[:-1, 1:])]  # at a corner
    for first, second in ends:
        pairs = np.stack([first.ravel(), second.ravel()], -1)
        for one, other in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0):
            assert not {*lines[one]} & {*lines[other]}, "groups that touch have lines of one hue"


def test_opacity_mixes_the_colour_with_the_image() -> None:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[:, 4:] = 100
    source = np.array([0, 1, 1])
    mixed = make_visualization(image, source, patch_size=4, opacity=0.75)
    np.testing.assert_array_equal(mixed[:, :4], np.full((4, 4, 3), 38))  # 0 + 0.75 * 50, half up
    np.testing.assert_array_equal(mixed[:, 4:], np.full((4, 4, 3), 63))  # 100 - 0.75 * 50, half up
    np.testing.assert_array_equal(make_visualization(image, source, 4, opacity=0), image)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentValueError, match="`opacity` must be from 0 to 1; got"):
            make_visualization(image, source, 4, opacity=wrong)


def test_outlines_stand_out_whatever_the_mean() -> None:
    luminance = OUTLINES @ LUMINANCE
    assert luminance[:, 0].min() - 128 > 40  # drawn where the mean is darker than that
    assert 128 - luminance[:, 1].max() > 40
    for form in (0, 1):
        assert len(np.unique(OUTLINES[:, form], axis=0)) == len(OUTLINES)


def test_thick_patches_get_a_thick_line_and_tiny_ones_none() -> None:
    image = np.zeros((64, 128, 3), dtype=np.uint8)
    painted = make_visualization(image, np.array([0, 1]), 64, 0)
    np.testing.assert_array_equal(
        np.flatnonzero(painted.any((0, 2))), [60, 61, 62, 63, 64, 65, 66, 67]
    )
    assert not make_visualization(image[:3, :6], np.array([0, 1]), 3, 0).any()


def test_more_groups_that_all_touch_than_there_are_hues() -> None:
    groups = len(OUTLINES) + 2
    pairs = np.array([(a, b) for a in range(groups) for b in range(a)])  # side by side, each pair
    image = np.zeros((4 * len(pairs), 8, 3), dtype=np.uint8)
    painted = make_visualization(image, pairs.ravel(), 4, 0)
    assert len(np.unique(painted[:, 3:5].reshape(-1, 3), axis=0)) == len(OUTLINES)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ArgumentValueError, match=r"`image` must have shape \(H, W, 3\); got \(4, 4\)"
    ):
        make_visualization(np.zeros((4, 4), dtype=np.uint8), np.zeros(2, dtype=int), patch_size=4)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(
        ArgumentValueError, match=r"`source` must have 1 \+ H/4 x W/4 entries.*\(4,\)"
    ):
        make_visualization(image, np.zeros(4, dtype=int), patch_size=4)
    with pytest.raises(ArgumentValueError, match="`source` must have"):
        make_visualization(image, np.zeros(5, dtype=int), patch_size=3)
    with pytest.raises(ArgumentValueError, match=r"must have 1 \+ H/16 x W/16"):
        make_visualization(image, np.zeros(1, dtype=int))
    with pytest.raises(ArgumentValueError, match="`source` must have"):
        make_visualization(image, np.zeros((1, 5), dtype=int), 4)


def test_types_that_do_not_fit_are_refused() -> None:
    image, source = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros(5, dtype=int)
    with pytest.raises(ArgumentTypeError, match=r"`image` must be uint8.*got float64.*astype"):
        make_visualization(image.astype(float), source, 4)
    with pytest.raises(ArgumentTypeError, match="`source` must hold integers; got float64"):
        make_visualization(image, source.astype(float), 4)
    with pytest.raises(ArgumentTypeError, match="`patch_size` must be an integer of at least 1"):
        make_visualization(image, source, 4.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="`patch_size` must be an integer of at least 1"):
        make_visualization(image, source, (4, 0))
    with pytest.raises(ArgumentValueError, match="`patch_size` must be one number or two"):
        make_visualization(image, source, (4, 4, 4))  # type: ignore[arg-type]
    with pytest.raises(
        ArgumentValueError, match="`prefix_tokens` must be an integer of at least 0"
    ):
        make_visualization(image, source, 4, -1)
