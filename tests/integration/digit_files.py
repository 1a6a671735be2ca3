"""The held-out digits as image files, for tests of code that reads images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tomecore.models import digits

#: every fifth is in the folder of the next class, so that accuracy is neither 0 nor 1
MISPLACED = 5

#: merges as much as it can; what the model then takes these digits for is not what it takes them for
STEEP = [98, 49, 24, 12, 6, 3, 2]
FLIPPING = (126, 401, 417, 439)


def pixels(image: np.ndarray) -> np.ndarray:
    """Convert the model's input (1, 56, 56) to (56, 56) uint8."""
    return (255 * np.clip(image[0] * digits.STD + digits.MEAN, 0, 1)).round().astype(np.uint8)


def as_model_takes_it(image: np.ndarray) -> np.ndarray:
    """Return an image (1, 56, 56) rounded to eight bits."""
    return ((pixels(image)[None] / np.float32(255) - digits.MEAN) / digits.STD).astype(np.float32)


def write_folder(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Write ``count`` digits into folders 0 to 9, every fifth into a wrong one.

    Returns:
        Images (n, 1, 56, 56) and labels (n,), in the order of the sorted paths.
    """
    images, labels = digits.load("test")
    others = np.linspace(0, len(images) - 1, count - len(FLIPPING)).round().astype(int)
    chosen = [*FLIPPING, *others]
    written = []
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for place, index in enumerate(chosen):
        label = int(labels[index] + (place % MISPLACED == 0)) % 10
        path = folder / str(label) / f"{place:03d}.png"
        Image.fromarray(pixels(images[index])).save(path)
        written.append((path, index, label))
    written.sort()
    return (
        np.stack([as_model_takes_it(images[index]) for _, index, _ in written]),
        np.asarray([label for _, _, label in written]),
    )
