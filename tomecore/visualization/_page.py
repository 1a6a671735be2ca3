"""One HTML page that shows where tokens went: it holds all it needs, and works without a network.

The page is ``data/visualize.html``; its script paints what :func:`make_visualization` paints, from the
source maps put in here. What comes from file names and models is data to it, never markup. Needs
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

from tomecore.visualization._paint import OUTLINES
from tomecore.visualization._sheet import Traced, plain

__all__ = ["page"]

_TEMPLATE = Path(__file__).parent / "data" / "visualize.html"


def page(traced: Traced, title: str, note: str = "") -> str:
    """The page, as text.

    Args:
        traced: the images.
        title: its heading.
        note: a line under it.
    """
    template = _TEMPLATE.read_text(encoding="utf-8")
    (style,) = re.findall("<style>(.*?)</style>", template, re.DOTALL)
    (script,) = re.findall("<script>(.*?)</script>", template, re.DOTALL)
    filled = {
        # Only this very script and style may run, and nothing may be loaded.
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'",
        "title": html.escape(plain(title)),
        "note": html.escape(plain(note)),
        "data": _json(_data(traced)),
    }
    # In one pass, so that nothing that was put in is looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template)


def _data(traced: Traced) -> dict[str, Any]:
    numbers, layers = range(len(traced.r)), range(traced.depth)
    return {
        "rows": traced.grid.rows,
        "columns": traced.grid.columns,
        "patch": traced.grid.patch,
        "outlines": OUTLINES.tolist(),
        "r": [str(r) for r in traced.r],
        "tokens": [
            [traced.tokens(n, layer) for layer in (0, *(i + 1 for i in layers))] for n in numbers
        ],
        "images": [
            {
                "name": plain(name),
                "png": _png(traced.pixels[image]),
                # by r, then by layer: the slot of each patch
                "slots": [
                    [traced.sources[n][layer][image, traced.prefix :].tolist() for layer in layers]
                    for n in numbers
                ],
            }
            for image, name in enumerate(traced.names)
        ],
    }


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no character in it means anything to HTML."""
    text = json.dumps(value, separators=(",", ":"))  # ASCII, so lone surrogates are escaped, too
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
