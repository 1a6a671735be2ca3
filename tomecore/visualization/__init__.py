"""Show which patches of an image merge: in a drawing, on a page, or as arrays.

    image = visualize(model, "photo.jpg", r=16)                        # a Pillow image; save="merged.png"

    sources = sources_by_layer(model, images)                         # a patched model; images (B, C, H, W)
    merged = make_visualization(image, sources[-1][0], patch_size=16)  # both (H, W, 3) uint8

``tomecore visualize`` does the same on the command line, for files.
"""

from __future__ import annotations

from tomecore.visualization._follow import (
    MergedImages,
    check_layers,
    follow_images,
    layers_to_draw,
    pixels_to_draw,
    printable,
)
from tomecore.visualization._page import PAGES, html_page
from tomecore.visualization._paint import OUTLINES, make_visualization
from tomecore.visualization._preprocess import preprocess_of
from tomecore.visualization._strip import STRIPS, Strip, draw_strip
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer
from tomecore.visualization._visualize import visualize

__all__ = [
    "OUTLINES",
    "PAGES",
    "STRIPS",
    "Grid",
    "MergedImages",
    "Strip",
    "check_layers",
    "draw_strip",
    "follow_images",
    "html_page",
    "layers_to_draw",
    "make_visualization",
    "patch_grid",
    "pixels_to_draw",
    "preprocess_of",
    "printable",
    "sources_by_layer",
    "visualize",
]
