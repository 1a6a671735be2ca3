"""The old path of :mod:`tomecore.models.digits`."""

from tomecore.models.digits import DIGITS_VIT, MEAN, STD, build, load, weights_path

__all__ = ["DIGITS_VIT", "MEAN", "STD", "build", "load", "weights_path"]
