"""Images for the commands: unlabelled ones in a folder, and the held-out digits in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tomecore.cli._output import counted, print_unreadable
from tomecore.errors import ArgumentValueError

if TYPE_CHECKING:
    from tomecore.loading import Loaded

__all__ = ["DIGITS", "held_out", "unlabelled"]

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
            f"{loaded.input_shape}; use the model digits:torch or digits:paddle, or "
            "evaluate a folder of images"
        )
    chosen = evaluation.evenly_spread(len(images), limit)
    return images[chosen], labels[chosen]


def unlabelled(loaded: Loaded, data: str, limit: int | None) -> tuple[np.ndarray, str]:
    """Return images (n, C, H, W) as ``loaded`` takes them, and a description of them.

    Images that cannot be read are reported and left out.

    Args:
        loaded: the model that takes them.
        data: a folder, a CSV file, or the word digits.
        limit: use at most this many, spread evenly; None: all.

    Raises:
        ArgumentValueError: none of them can be read.
    """
    from tomecore import evaluation

    if data == DIGITS:
        arrays, _ = held_out(loaded, limit)
        return arrays, counted(len(arrays), "held-out digit")
    found = evaluation.find(data, labelled=False)
    chosen = evaluation.evenly_spread(len(found.paths), limit)
    pictures = evaluation.Pictures([found.paths[i] for i in chosen], loaded.image, found.root)
    read, unreadable = pictures.read_all()
    if unreadable:
        print_unreadable(unreadable, len(read))
    if not read:
        raise ArgumentValueError(f"none of the {len(chosen)} images in {data} can be read")
    arrays = np.stack([image for _, image in read])
    return arrays, f"{len(read)} of {len(found.paths)} images in {data}"
