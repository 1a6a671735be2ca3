"""Draw images beside their merged groups after some layers, on one sheet.

``_page`` shows the same for every layer, in a browser. Needs Pillow and matplotlib (``tomecore[cli]``;
the font of labels is matplotlib's, which covers most alphabets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.schedule import R
from tomecore.visualization._paint import make_visualization
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

__all__ = ["MergedImages", "draw_strips", "follow_images", "layers_to_draw", "printable"]

_SHORTEST = 224  # small images are enlarged to at least this many pixels on the shorter side
_GAP = 8
_LABEL = 22


@dataclass(frozen=True)
class MergedImages:
    """Images, and where their patches went in every layer at every r.

    Args:
        names: names of the images.
        pixels: (H, W, 3) uint8 of each image: the part that the model saw, whole patches only, small
            images enlarged.
        grid: the grid of patches in ``pixels``.
        prefix: tokens before the first patch.
        r: the schedules.
        sources: for each of ``r`` one (images, N) array of slots per layer.
    """

    names: tuple[str, ...]
    pixels: tuple[np.ndarray, ...]
    grid: Grid
    prefix: int
    r: tuple[R, ...]
    sources: tuple[tuple[np.ndarray, ...], ...]

    @property
    def depth(self) -> int:
        """Number of layers of the model."""
        return len(self.sources[0])

    def tokens(self, number: int, layer: int) -> int:
        """Return the tokens left after ``layer`` layers (0: before the first) at the r of that number."""
        if layer == 0:
            return int(self.sources[number][0].shape[1])
        return int(self.sources[number][layer - 1].max()) + 1

    def painted(self, image: int, number: int, layer: int) -> np.ndarray:
        """Return (H, W, 3) uint8: an image after ``layer`` layers, 1 or more, at the r of that number."""
        source = self.sources[number][layer - 1][image]
        return make_visualization(self.pixels[image], source, self.grid.patch, self.prefix)


def follow_images(
    model: Any,
    images: np.ndarray,
    pixels: Sequence[np.ndarray],
    names: Sequence[str],
    r: Sequence[R],
) -> MergedImages:
    """Run a patched model on images at each r, and keep where their tokens went.

    Args:
        model: a patched model; its r is the last of ``r`` afterwards.
        images: (n, C, H, W) float, as the model takes them.
        pixels: n images (H, W, 3) uint8, to draw on.
        names: names of the images.
        r: one schedule or more.

    Raises:
        UnsupportedModelError: the grid of patches in the image is unknown.
    """
    sources = []
    for schedule in r:
        model.r = schedule
        sources.append(tuple(sources_by_layer(model, images)))
    size = (int(images.shape[2]), int(images.shape[3]))
    grid = patch_grid(model, sources[0][0].shape[1], size)
    height, width = grid.rows * grid.patch[0], grid.columns * grid.patch[1]
    # A patch that is drawn needs 8 pixels: a line on each side, and some colour between them.
    zoom = max(1, -(-_SHORTEST // min(height, width)), -(-8 // min(grid.patch)))
    drawn = [
        np.repeat(np.repeat(one[:height, :width], zoom, axis=0), zoom, axis=1) for one in pixels
    ]
    patch = (grid.patch[0] * zoom, grid.patch[1] * zoom)
    return MergedImages(
        names=tuple(names),
        pixels=tuple(drawn),
        grid=Grid(grid.rows, grid.columns, patch),
        prefix=model.tome.protected,
        r=tuple(r),
        sources=tuple(sources),
    )


def layers_to_draw(depth: int, count: int = 4) -> list[int]:
    """Return ``count`` layers spread over ``depth``, the last one included; fewer if there are fewer."""
    return sorted({max(1, round(depth * part / count)) for part in range(1, count + 1)})


def draw_strips(merged: MergedImages, layers: Sequence[int], path: Path) -> None:
    """Write one sheet: a row for each image and r, the original first, then merged after ``layers``.

    Args:
        merged: the images to draw.
        layers: numbers from 1 to the model's depth.
        path: the file to write; its ending decides the format.

    Raises:
        ArgumentValueError: a layer that the model does not have.
    """
    from PIL import Image, ImageDraw, ImageFont

    for layer in layers:
        if not 1 <= layer <= merged.depth:
            raise ArgumentValueError(
                f"`layers` must be from 1 to {merged.depth}, the layers of the model; got {layer}"
            )
    import matplotlib

    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 13
    )
    height, width = merged.pixels[0].shape[:2]
    rows = [
        (image, number) for image in range(len(merged.names)) for number in range(len(merged.r))
    ]
    across, down = width + _GAP, height + _LABEL + _GAP
    sheet = Image.new(
        "RGB", (_GAP + across * (1 + len(layers)), _GAP // 2 + down * len(rows)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for row, (image, number) in enumerate(rows):
        cells = [(printable(merged.names[image]), merged.pixels[image])]
        for layer in layers:
            label = f"r={merged.r[number]}, layer {layer}: {merged.tokens(number, layer)} tokens"
            cells.append((label, merged.painted(image, number, layer)))
        for column, (label, drawn) in enumerate(cells):
            left, top = _GAP + column * across, row * down
            pen.text((left, top + 4), _fitting(label, font, width), fill="black", font=font)
            sheet.paste(Image.fromarray(drawn), (left, top + _LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def printable(name: str) -> str:
    """Return a file name as one line of text, with escapes for characters that cannot be printed."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
    )


def _fitting(label: str, font: FreeTypeFont, width: int) -> str:
    """Return ``label``, with its end cut off if it is wider than ``width`` pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}..."
