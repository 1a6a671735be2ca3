"""Build one HTML page that shows where tokens went: it has all it needs, and works without a network.

The page is ``data/visualize.html``; its script paints what :func:`make_visualization` paints, from the
source maps that this module inserts. The names of files and models are data to it, never markup. Needs
Pillow (``tomecore[cli]``).
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.visualization._follow import MergedImages, printable
from tomecore.visualization._paint import OUTLINES, check_opacity

__all__ = ["PAGES", "html_page"]

#: the endings of pages
PAGES = (".html", ".htm")

_TEMPLATE = Path(__file__).parent / "data" / "visualize.html"


def html_page(merged: MergedImages, title: str, note: str = "", opacity: float = 1.0) -> str:
    """Return an HTML page that shows the images and their merged groups, as text.

    Args:
        merged: the images to show.
        title: heading of the page.
        note: a line under the heading.
        opacity: how much of the image the colours of groups cover at first, from 0 to 1.
    """
    check_opacity(opacity)
    template = _TEMPLATE.read_text(encoding="utf-8")
    (style,) = re.findall("<style>(.*?)</style>", template, re.DOTALL)
    (script,) = re.findall("<script>(.*?)</script>", template, re.DOTALL)
    filled = {
        # Only this script and this style are allowed, and nothing may be loaded.
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "title": html.escape(printable(title)),
        # The names of options are not broken after their dashes.
        "note": re.sub("(--[a-z]+)", r"<code>\1</code>", html.escape(printable(note))),
        "data": _json({**_data(merged), "opacity": round(100 * opacity)}),
    }
    # One pass, so that inserted text is not searched for placeholders again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


def _data(merged: MergedImages) -> dict[str, Any]:
    numbers, layers = range(len(merged.r)), range(merged.depth)
    return {
        "rows": merged.grid.rows,
        "columns": merged.grid.columns,
        "patch": merged.grid.patch,
        "outlines": OUTLINES.tolist(),
        "r": [f"r = {r}" for r in merged.r],
        # by r: before the first layer, then after each
        "tokens": [[merged.tokens(n, layer) for layer in (-1, *layers)] for n in numbers],
        "images": [
            {
                "name": printable(name),
                "png": _png(merged.pixels[image]),
                # by r, then by layer: the slot of each patch
                "slots": [
                    [merged.sources[n][layer][image, merged.prefix :].tolist() for layer in layers]
                    for n in numbers
                ],
            }
            for image, name in enumerate(merged.names)
        ],
    }


def _json(value: Any) -> str:
    """Return JSON that can stand in a script element: no character in it means anything to HTML."""
    text = json.dumps(
        value, separators=(",", ":")
    )  # ASCII, so that lone surrogates are escaped too
    for one in "<>&":
        text = text.replace(one, f"\\u{ord(one):04x}")
    return text


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
