"""The old path of what :mod:`tomecore.visualization` has of it."""

from tomecore.visualization import Grid, patch_grid, sources_by_layer

__all__ = ["Grid", "patch_grid", "sources_by_layer"]
