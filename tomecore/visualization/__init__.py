"""Which patches merged: followed through the layers, painted on images, laid out as strips or as a page."""

from __future__ import annotations

from tomecore.visualization._page import page
from tomecore.visualization._paint import OUTLINES, make_visualization
from tomecore.visualization._sheet import Traced, draw_strips, plain, spread, trace
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer

__all__ = [
    "OUTLINES",
    "Grid",
    "Traced",
    "draw_strips",
    "make_visualization",
    "page",
    "patch_grid",
    "plain",
    "sources_by_layer",
    "spread",
    "trace",
]
