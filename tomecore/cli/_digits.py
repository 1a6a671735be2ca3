"""The held-out digits, which several commands accept in place of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tomecore.errors import ArgumentValueError

if TYPE_CHECKING:
    import numpy as np

    from tomecore.loading import Loaded

__all__ = ["DIGITS", "held_out"]

#: the word for them on the command line
DIGITS = "digits"


def held_out(loaded: Loaded, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 1, 56, 56) float32 and their labels (n,) int64; at most ``limit``, spread evenly.

    Raises:
        ArgumentValueError: the model takes images of another shape.
    """
    from tomecore import evaluation
    from tomecore.models import digits

    images, labels = digits.load("test")
    if loaded.input_shape != images.shape[1:]:
        raise ArgumentValueError(
            f"the digits are grey images {images.shape[1:]}, and {loaded.name} takes "
            f"{loaded.input_shape}; use digits:torch or digits:paddle, or images"
        )
    chosen = evaluation.evenly_spread(len(images), limit)
    return images[chosen], labels[chosen]
