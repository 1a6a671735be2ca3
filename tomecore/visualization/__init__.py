"""Show which patches of an image merge: follow them through the layers, and draw a sheet or a page.

    sources = sources_by_layer(model, images)                         # a patched model; images (B, C, H, W)
    merged = make_visualization(image, sources[-1][0], patch_size=16)  # both (H, W, 3) uint8

``tomecore visualize`` does the same on the command line, for files.
"""

from __future__ import annotations

from tomecore.visualization._page import html_page
from tomecore.visualization._paint import OUTLINES, make_visualization
from tomecore.visualization._sheet import (
    MergedImages,
    draw_strips,
    follow_images,
    layers_to_draw,
    printable,
)
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer

__all__ = [
    "OUTLINES",
    "Grid",
    "MergedImages",
    "draw_strips",
    "follow_images",
    "html_page",
    "layers_to_draw",
    "make_visualization",
    "patch_grid",
    "printable",
    "sources_by_layer",
]
