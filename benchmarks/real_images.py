"""Images for :mod:`real`: photographs that Python packages carry, a folder, and CIFAR-10 in one file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from real_model import SIDE, package_file
from sklearn.datasets import load_sample_image
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: photographs in the wheel of scikit-image, in ``skimage/data``
SKIMAGE = (
    *("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png"),
    *("hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
#: photographs in scikit-learn
SKLEARN = ("china.jpg", "flower.jpg")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Images(NamedTuple):
    """Images ready for the model.

    Args:
        pixels: (N, 3, 224, 224).
        source: where they come from, with their number and a digest of the pixels.
    """

    pixels: Tensor
    source: str


class Cifar(NamedTuple):
    """Labelled images: ``fit`` for the probe on the unpatched model, ``test`` for merging."""

    fit: Tensor
    fit_labels: np.ndarray
    test: Tensor
    test_labels: np.ndarray
    source: str


def prepare(image: Image.Image) -> np.ndarray:
    """Return (3, 224, 224): the centre square, resized by bicubic interpolation and normalised."""
    image = image.convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    scaled = np.asarray(image, np.float32) / 255
    return ((scaled - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1)


def gather(images: list[Image.Image], source: str) -> Images:
    """Return the images prepared, and their source with number and digest."""
    pixels = np.stack([prepare(image) for image in images])
    digest = hashlib.sha256(np.round(pixels, 3).tobytes()).hexdigest()[:12]
    return Images(torch.from_numpy(pixels), f"{source}: {len(images)} images, {digest}")


def package_images(names: tuple[str, ...] = (*SKLEARN, "grace_hopper.jpg", *SKIMAGE)) -> Images:
    """Return photographs that scikit-learn, matplotlib and scikit-image carry, by their file names."""
    found = []
    for name in names:
        if name in SKLEARN:
            found.append(Image.fromarray(load_sample_image(name)))
        elif name in SKIMAGE:
            found.append(Image.open(package_file("scikit-image", f"skimage/data/{name}")))
        else:
            found.append(Image.open(Path(matplotlib.get_data_path()) / "sample_data" / name))
    return gather(found, "scikit-learn, matplotlib, scikit-image")


def folder_images(folder: Path, most: int | None = None) -> Images:
    """Return the images of a folder in the order of their names, at most ``most``; exit if there are none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)[:most]
    if not paths:
        raise SystemExit(f"--photos {folder} has no image file ({', '.join(sorted(SUFFIXES))})")
    return gather([Image.open(path) for path in paths], "folder")


def cifar_images(file: Path, fit: int, test: int) -> Cifar:
    """Return the first ``fit`` and ``test`` images of an npz file.

    Args:
        file: with ``x_probe``, ``x_test`` uint8 (N, 32, 32, 3) and ``y_probe``, ``y_test`` (N,).
        fit: number of images to fit the probe on.
        test: number of others to test it on.
    """
    arrays = np.load(file)
    parts = []
    for name, count in (("probe", fit), ("test", test)):
        images = [Image.fromarray(array) for array in arrays[f"x_{name}"][:count]]
        parts += [gather(images, name).pixels, arrays[f"y_{name}"][:count]]
    source = f"CIFAR-10: {len(parts[1])} images to fit, {len(parts[3])} to test"
    return Cifar(parts[0], parts[1], parts[2], parts[3], source)
