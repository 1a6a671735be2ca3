"""Draw images next to their merged groups after some layers, on one strip.

``_page`` shows the same for every layer, in a browser. Needs Pillow and matplotlib (``tomecore[cli]``).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomecore.core.checks import check_writable
from tomecore.errors import ArgumentValueError
from tomecore.visualization._follow import MergedImages, check_layers, printable
from tomecore.visualization._paint import check_opacity

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["STRIPS", "Strip", "draw_strip"]

#: the endings of files that :meth:`Strip.save` writes
STRIPS = (".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf")

_LEGEND = (
    "Bars: one piece for each group of patches, in its mean colour. Its length, and the number in it, is "
    "the number of its patches."
)
#: dots per inch: a power of 2, so that pixels are exact in inches
_DPI = 128
#: the font comes with matplotlib, and covers most alphabets
_FONT = "DejaVu Sans"
#: pixels on a side that the drawing must not reach, a limit of matplotlib
_MOST = 2**16


@dataclass(frozen=True)
class _Colours:
    """The colours of a strip: of its background, of headings, and of other text."""

    background: tuple[float, float, float, float]
    heading: str
    text: str

    @classmethod
    def on(cls, background: str) -> _Colours:
        """Return the colours for a background; on a transparent one, text is legible on light and dark."""
        from matplotlib.colors import to_rgba

        try:
            rgba = (0.0, 0.0, 0.0, 0.0) if background == "transparent" else to_rgba(background)
        except ValueError:
            raise ArgumentValueError(
                "`background` must be 'transparent' or a colour such as 'white', 'black' or '#0d1117'; "
                f"got {background!r}"
            ) from None
        if rgba[3] < 1:
            return cls(rgba, "#7a838d", "#7a838d")
        light = 0.2126 * rgba[0] + 0.7152 * rgba[1] + 0.0722 * rgba[2] > 0.5
        return cls(rgba, *(("#1f2328", "#59636e") if light else ("#f0f6fc", "#a4adb7")))


class Strip:
    """A drawing of merged images.

    Args:
        figure: the figure of matplotlib, one pixel for each pixel of the drawing.
    """

    def __init__(self, figure: Any) -> None:
        self._figure = figure

    @property
    def image(self) -> Image:
        """The drawing as a Pillow image: RGB, or RGBA if its background is transparent."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        canvas: Any = FigureCanvasAgg(self._figure)
        with _missing_glyphs():
            canvas.draw()
        drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()).copy())
        return drawn if self._figure.get_facecolor()[3] < 1 else drawn.convert("RGB")

    def save(self, path: Path | str) -> None:
        """Write the drawing, and create its folder; the ending of the file decides the format.

        In an SVG or PDF the text is drawn by lines, and the images are embedded.

        Raises:
            ArgumentValueError: the ending is not one of :data:`STRIPS`, or no file can be written there.
        """
        path = Path(path)
        if path.suffix.lower() not in STRIPS:
            raise ArgumentValueError(f"{path} must end in {', '.join(STRIPS)}")
        check_writable(path, "path")
        if path.suffix.lower() in (".svg", ".pdf"):
            dates = {"Date": None} if path.suffix.lower() == ".svg" else {"CreationDate": None}
            with _missing_glyphs():
                self._figure.savefig(path, metadata=dates)
            return
        image = self.image
        if path.suffix.lower() in (".jpg", ".jpeg"):
            image = _on_white(image)
        image.save(path)


def draw_strip(
    merged: MergedImages,
    layers: Sequence[int],
    *,
    title: str = "",
    opacity: float = 1.0,
    background: str = "white",
) -> Strip:
    """Draw a row for each image and r: the original in the first, and the merged groups after ``layers``.

    A bar under each shows the sizes of its groups.

    Args:
        merged: the images to draw.
        layers: numbers of layers, from 0.
        title: a line above the images.
        opacity: how much of the image the colours of groups cover, from 0 to 1.
        background: a colour, or "transparent".

    Raises:
        ArgumentValueError: a layer that the model does not have, an opacity or background that is not
            allowed, or a drawing that is too large.
    """
    check_opacity(opacity)
    colours = _Colours.on(background)
    shown = check_layers(layers, merged.depth)
    height, width = merged.pixels[0].shape[:2]
    layout = _Layout(height, width, len(shown) + 1, bool(title))
    rows = [
        (image, number) for image in range(len(merged.names)) for number in range(len(merged.r))
    ]
    with _missing_glyphs():
        legend = _wrapped(_LEGEND, layout.font, layout.width - 2 * layout.gap)
        sheet = _Sheet(layout.width, layout.height(len(rows), len(legend)), colours)
        if title:
            sheet.write(
                layout.gap, layout.gap, printable(title), layout.title, layout.inside, bold=True
            )
        for row, (image, number) in enumerate(rows):
            _draw_row(sheet, layout, merged, row, image, number, shown, opacity)
        for line, text in enumerate(legend):
            top = layout.top(len(rows)) + line * layout.line
            sheet.write(layout.gap, top, text, layout.font, layout.inside)
    return Strip(sheet.figure)


@dataclass(frozen=True)
class _Layout:
    """The places of things on a strip, in pixels from its upper left corner."""

    cell_height: int
    cell_width: int
    columns: int
    titled: bool

    @property
    def font(self) -> int:
        """Height of text; it grows with the images, so that it stays legible if they are shown small."""
        return max(11, min(self.cell_height, self.cell_width) // 16)

    @property
    def title(self) -> int:
        return self.font * 3 // 2

    @property
    def line(self) -> int:
        return self.font * 7 // 5

    @property
    def gap(self) -> int:
        return max(8, self.font)

    @property
    def bar(self) -> int:
        """Height of the bar of sizes."""
        return self.font * 6 // 5

    @property
    def width(self) -> int:
        return self.gap + self.columns * (self.cell_width + self.gap)

    @property
    def inside(self) -> int:
        """Width of everything but the margins."""
        return self.width - 2 * self.gap

    def left(self, column: int) -> int:
        return self.gap + column * (self.cell_width + self.gap)

    def top(self, row: int) -> int:
        """Return the upper edge of a row: a heading, a label, the images, their bars."""
        first = self.gap + (self.title * 3 // 2 + self.gap // 2 if self.titled else 0)
        return first + row * (
            2 * self.line + self.cell_height + self.font // 3 + self.bar + self.gap
        )

    def height(self, rows: int, legend: int) -> int:
        return self.top(rows) + legend * self.line + self.gap // 2


def _draw_row(
    sheet: _Sheet,
    layout: _Layout,
    merged: MergedImages,
    row: int,
    image: int,
    number: int,
    layers: Sequence[int],
    opacity: float,
) -> None:
    """Draw one image at one r, and the original if it is the first of its rows."""
    head = layout.top(row)
    label, top = head + layout.line, head + 2 * layout.line
    below = top + layout.cell_height + layout.font // 3
    wide = layout.cell_width
    if number == 0:
        left = layout.left(0)
        name = printable(merged.names[image])
        sheet.write(left, head, name, layout.font, wide, bold=True)
        sheet.write(left, label, f"{merged.tokens(number, -1)} tokens", layout.font, wide)
        sheet.place(left, top, merged.pixels[image])
    across = layout.width - layout.left(1) - layout.gap
    sheet.write(layout.left(1), head, f"r = {merged.r[number]}", layout.font, across, bold=True)
    for column, layer in enumerate(layers, start=1):
        left = layout.left(column)
        text = f"layer {layer}: {merged.tokens(number, layer)} tokens"
        sheet.write(left, label, text, layout.font, wide)
        sheet.place(left, top, merged.paint(image, number, layer, opacity))
        _draw_bar(sheet, left, below, (wide, layout.bar), *merged.groups(image, number, layer))


def _draw_bar(
    sheet: _Sheet,
    left: int,
    top: int,
    size: tuple[int, int],
    sizes: np.ndarray,
    colours: np.ndarray,
) -> None:
    """Draw a bar with a piece for each group, as long as its share of the patches, and its size in it."""
    width, height = size
    ends = np.floor(np.cumsum(sizes) * width / sizes.sum() + 0.5).astype(int)
    starts = np.concatenate([[0], ends[:-1]])
    bar = np.zeros((height, width, 4), dtype=np.uint8)
    for start, end, colour in zip(starts, ends, colours, strict=True):
        gap = 1 if end - start > 3 else 0  # what shows between two pieces is the background
        bar[:, start : end - gap] = (*colour, 255)
    sheet.place(left, top, bar)
    font = height * 3 // 4
    for start, end, count, colour in zip(starts, ends, sizes, colours, strict=True):
        if count == 1 or _width_of(str(count), font) > end - start - 4:
            break  # the pieces after it are not longer
        light = colour @ np.array([0.2126, 0.7152, 0.0722]) >= 128
        middle = left + (int(start) + int(end)) // 2
        sheet.number(middle, top + height // 2, str(count), font, "black" if light else "white")


class _Sheet:
    """A figure of matplotlib that is addressed by pixels from its upper left corner."""

    def __init__(self, width: int, height: int, colours: _Colours) -> None:
        from matplotlib.figure import Figure

        if max(width, height) >= _MOST:
            raise ArgumentValueError(
                f"the drawing would have {width} x {height} pixels, and a side can have at most {_MOST - 1}; "
                "draw fewer images, layers or schedules, or choose a smaller scale"
            )
        self.width, self.height, self.colours = width, height, colours
        self.figure = Figure(
            figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=colours.background
        )
        self.figure.suppressComposite = True  # images stay apart in an SVG, each in its own pixels

    def place(self, left: int, top: int, pixels: np.ndarray) -> None:
        """Draw (H, W, 3 or 4) uint8, pixel by pixel."""
        self.figure.figimage(pixels, left, self.height - top - pixels.shape[0], origin="upper")

    def write(
        self, left: int, top: int, text: str, size: int, width: int, bold: bool = False
    ) -> None:
        """Write a line of text of ``size`` pixels; its end is cut off if it is wider than ``width``."""
        self._text(
            left,
            top + size,
            _fitting(text, size, width, bold),
            size,
            self.colours.heading if bold else self.colours.text,
            bold,
        )

    def number(self, middle: int, centre: int, text: str, size: int, colour: str) -> None:
        """Write a number around a point."""
        left = middle - _width_of(text, size) / 2
        self._text(left, centre + 0.36 * size, text, size, colour, bold=False)

    def _text(
        self, left: float, baseline: float, text: str, size: int, colour: str, bold: bool
    ) -> None:
        self.figure.text(
            left / self.width,
            1 - baseline / self.height,
            text,
            family=_FONT,
            fontsize=size * 72 / _DPI,
            fontweight="bold" if bold else "normal",
            color=colour,
            va="baseline",
            parse_math=False,
        )


@contextlib.contextmanager
def _missing_glyphs() -> Iterator[None]:
    """Do not warn of characters that the font lacks: a file may have any name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _width_of(text: str, size: int, bold: bool = False) -> float:
    """Return the width of a text in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=_FONT, size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def _fitting(text: str, size: int, width: int, bold: bool = False) -> str:
    """Return ``text``, with its end cut off if it is wider than ``width`` pixels."""
    if _width_of(text, size, bold) <= width:
        return text
    while text and _width_of(f"{text}...", size, bold) > width:
        text = text[:-1]
    return f"{text}..."


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Return lines of at most ``width`` pixels, and at least one word."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _on_white(image: Image) -> Image:
    """Return ``image`` without transparency, for formats that do not have it."""
    from PIL import Image

    if image.mode != "RGBA":
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white
