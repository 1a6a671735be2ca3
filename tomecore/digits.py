"""The old path of :mod:`tomecore.models.digits`."""

from tomecore.models.digits import DIGITS_VIT, load, weights_path

__all__ = ["DIGITS_VIT", "load", "weights_path"]
