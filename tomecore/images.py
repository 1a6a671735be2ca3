"""The old path of :mod:`tomecore.loading.images`."""

from tomecore.loading.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, read_image

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocess", "read_image"]
