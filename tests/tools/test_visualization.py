"""The picture of merged tokens: mean colours, outlines, and errors that say what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from tomecore.errors import ArgumentValueError
from tomecore.visualization import make_visualization


def test_groups_get_their_mean_colour_and_an_outline() -> None:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[:, :4] = (10, 20, 30)
    image[:, 4:] = (30, 40, 50)
    one = make_visualization(image, np.array([0, 1, 1]), patch_size=4)
    np.testing.assert_array_equal(one, np.broadcast_to([20, 30, 40], image.shape))
    two = make_visualization(image, np.array([0, 2, 1]), patch_size=4)
    np.testing.assert_array_equal(two[:, :4], image[:, :4])
    np.testing.assert_array_equal(two[:, 5:], image[:, 5:])
    assert (two[:, 4] > image[:, 4]).all()  # the line between the groups, light on dark


def test_patches_of_a_group_need_not_touch() -> None:
    image = np.arange(3 * 4 * 12, dtype=np.uint8).reshape(4, 12, 3)
    painted = make_visualization(image, np.array([7, 3, 7]), patch_size=4, prefix_tokens=0)
    expected = np.concatenate([image[:, :4], image[:, 8:]], axis=1).reshape(-1, 3).mean(0).round()
    np.testing.assert_array_equal(painted[0, 0], expected)
    np.testing.assert_array_equal(painted[3, 11], expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        ArgumentValueError, match=r"`image` must have shape \(H, W, 3\); got \(4, 4\)"
    ):
        make_visualization(np.zeros((4, 4), dtype=np.uint8), np.zeros(2), patch_size=4)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(
        ArgumentValueError, match=r"`source` must have 1 \+ H/4 x W/4 entries.*\(4,\)"
    ):
        make_visualization(image, np.zeros(4, dtype=int), patch_size=4)
    with pytest.raises(ArgumentValueError, match="`source` must have"):
        make_visualization(image, np.zeros(5, dtype=int), patch_size=3)
