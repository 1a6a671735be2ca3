"""Draw which patches were merged: each group in its mean colour, with a line around it."""

from __future__ import annotations

import numpy as np

from tomecore.errors import ArgumentValueError

__all__ = ["make_visualization"]


def make_visualization(
    image: np.ndarray, source: np.ndarray, *, patch_size: int = 16, prefix_tokens: int = 1
) -> np.ndarray:
    """Paint one image by its merged groups (the paper's figures: Bolya et al. 2023, figure 4).

    Args:
        image: (H, W, 3) uint8; H and W multiples of ``patch_size``.
        source: (N,) int, original token -> slot: one row of ``model.tome.source``.
        patch_size: pixels on a side of one patch.
        prefix_tokens: tokens before the first patch.

    Returns:
        (H, W, 3) uint8: every group in its mean colour, outlined; patches of a group need not touch.

    Raises:
        ArgumentValueError: the shapes do not fit together.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ArgumentValueError(f"`image` must have shape (H, W, 3); got {image.shape}")
    rows, columns = image.shape[0] // patch_size, image.shape[1] // patch_size
    if image.shape[:2] != (rows * patch_size, columns * patch_size) or (
        source.shape != (prefix_tokens + rows * columns,)
    ):
        raise ArgumentValueError(
            f"`source` must have {prefix_tokens} + H/{patch_size} x W/{patch_size} entries for an "
            f"image of {image.shape[0]} x {image.shape[1]} pixels; got shape {source.shape}"
        )
    group = np.kron(
        source[prefix_tokens:].reshape(rows, columns), np.ones((patch_size, patch_size), dtype=int)
    )
    _, flat = np.unique(group, return_inverse=True)
    flat = flat.ravel()
    count = np.bincount(flat)
    painted = np.stack(
        [(np.bincount(flat, image[..., c].ravel()) / count)[flat] for c in range(3)], axis=-1
    ).reshape(image.shape)
    edge = np.zeros(group.shape, dtype=bool)
    edge[1:] |= group[1:] != group[:-1]
    edge[:, 1:] |= group[:, 1:] != group[:, :-1]
    contrast = np.where(painted.mean(-1, keepdims=True) < 128, 255.0, 0.0)
    painted = np.where(edge[..., None], 0.55 * painted + 0.45 * contrast, painted)
    return painted.round().astype(np.uint8)
