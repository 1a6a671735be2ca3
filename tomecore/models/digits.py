"""Handwritten digits as input for a vision transformer, and the weights of a model trained on them.

The demo and the tests need a real model on real images without a download. scikit-learn ships
1797 digits of 8x8 pixels; enlarged to 56x56 and cut into 4x4 patches they give 14x14 patch tokens
and a class token: 197, the token count of ViT-B/16 at 224 pixels, so schedules mean the same here.

This module needs no framework: only numpy, and scikit-learn in :func:`load`. ``tools/train_digits.py``
trains the weights.
"""

from __future__ import annotations

import importlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from tomecore._project import install_hint
from tomecore.errors import MissingLibraryError
from tomecore.frameworks import RUNTIMES

__all__ = ["DIGITS_VIT", "MEAN", "STD", "build", "load", "weights_path"]

DIGITS_VIT: dict[str, Any] = {
    "img_size": 56,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 96,
    "depth": 12,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "norm_eps": 1e-6,
}
"""Arguments of the trained model, for ``VisionTransformer.from_config`` of either framework."""

MEAN, STD = 0.305, 0.376
"""Statistics of the pixels of all digits, scaled to [0, 1]: images are (pixel - MEAN) / STD."""

_TEST_FRACTION = 0.25
_SEED = 0


def load(split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Load one split of the digits.

    The split is stratified by class and fixed: 454 test images, 1343 to train on.

    Args:
        split: "train" or "test".

    Returns:
        Images (n, 1, 56, 56) float32, normalised, and labels (n,) int64.

    Raises:
        ValueError: ``split`` is neither of these.
        MissingLibraryError: scikit-learn is not installed; an ``ImportError``.
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test'; got {split!r}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingLibraryError(
            "the digits come with scikit-learn, which is not installed; install it with: "
            f"{install_hint('cli')}"
        ) from error
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    index = np.flatnonzero(_test_mask(labels) == (split == "test"))
    pixels = np.asarray(bunch.images, dtype=np.float64)[index] / 16.0
    weights = _bilinear(pixels.shape[-1], DIGITS_VIT["img_size"])
    images = (weights @ pixels @ weights.T - MEAN) / STD
    return images.astype(np.float32)[:, None], labels[index]


def weights_path() -> Path:
    """Return the path of the trained weights, a safetensors file with timm's names."""
    return Path(str(files("tomecore.models.data") / "digits_vit.safetensors"))


def build(framework: str) -> Any:
    """Build the trained model of ``framework``, "torch" or "paddle", in evaluation mode.

    Both read the same weights file, so both compute the same function.
    """
    from safetensors.numpy import load_file

    from tomecore.models.convert import convert_weights, load_arrays

    stored = {n: v.astype(np.float32) for n, v in load_file(weights_path()).items()}
    module = importlib.import_module(f"tomecore.models.{framework}")
    model = module.VisionTransformer.from_config(DIGITS_VIT)
    load_arrays(model, convert_weights(stored, source="timm", target=RUNTIMES[framework].layout))
    model.eval()
    return model


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """Return a mask (n,) bool of the test images, the same share of every class."""
    rng = np.random.RandomState(_SEED)  # its stream is frozen; that of default_rng is not
    mask = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        mask[members[: int(np.ceil(_TEST_FRACTION * len(members)))]] = True
    return mask


def _bilinear(old: int, new: int) -> np.ndarray:
    """Return weights (new, old) of linear interpolation between pixel centres, clamped at the edge."""
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(old)))
