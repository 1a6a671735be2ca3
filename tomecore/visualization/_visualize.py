"""Draw what a model merges in images of any kind, in one call."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomecore._project import install_hint
from tomecore.core.checks import check_writable
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ClampWarning,
    MissingLibraryError,
)
from tomecore.frameworks import to_numpy
from tomecore.loading import merging
from tomecore.loading.images import Preprocess, in_colour, read_image
from tomecore.schedule import R
from tomecore.visualization._follow import follow_images, layers_to_draw, pixels_to_draw
from tomecore.visualization._page import PAGES, html_page
from tomecore.visualization._paint import check_opacity
from tomecore.visualization._preprocess import Statistics, preprocess_of
from tomecore.visualization._strip import STRIPS, draw_strip

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["visualize"]

#: the r of a model that is not patched
_R = 16


def visualize(
    model: Any,
    images: Any,
    *,
    r: R | None = None,
    compare: Sequence[R] = (),
    layers: Sequence[int] | None = None,
    title: str = "",
    scale: int | None = None,
    opacity: float = 1.0,
    background: str = "white",
    save: str | Path | Sequence[str | Path] = (),
    size: int | tuple[int, int] | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> Image:
    """Draw which patches of an image a model merges: the image, and its groups after some of the layers.

    The model runs in evaluation mode, and is afterwards as it was, also if this fails: its r, its
    settings, its mode, and whether it is patched. A model that is not patched is patched for the call.
    Only the results of the last forward pass, such as ``model.tome.tokens``, are those of this call.
    Needs Pillow and matplotlib (the extra ``cli``).

    Args:
        model: a model of PyTorch or Paddle, patched or not.
        images: one image, or a list: a path, a Pillow image, an array (H, W, 3) or (H, W) uint8, or a
            tensor or float array (C, H, W), prepared as the model takes it; a batch (B, C, H, W) is B of
            them. Images that are not prepared are resized, and the middle is cut out.
        r: what to merge, in any form that ``model.r`` takes; None: the model's own r, or 16 if it merges
            nothing.
        compare: further r, each drawn in a row of its own.
        layers: numbers of the layers to draw, from 0; None: four, spread over the model.
        title: a line above the images.
        scale: pixels of the drawing on a side of one pixel of the model's input; None: enough to see it.
        opacity: how much of the image the colours of groups cover, from 0 (only outlines) to 1.
        background: a colour, or "transparent", on which text is legible on light and dark pages.
        save: one file or several to write. The ending decides the format: .png, .jpg, .webp, .svg or .pdf
            for what is returned, .html for a page with all layers that works offline.
        size: height and width to which images are resized, or one number; None: the model's.
        mean: of each channel, with which images are normalised, or one number; None: the model's. See
            ``tomecore.visualization.preprocess_of``.
        std: in the same way.

    Returns:
        The drawing, as a Pillow image.

    Raises:
        ArgumentTypeError: ``images`` holds something else, or an argument has the wrong type.
        ArgumentValueError: an image cannot be read, or an argument has a value that is not allowed.
        UnsupportedModelError: the model cannot be patched, or the grid of its patches is unknown.
        MissingLibraryError: Pillow or matplotlib is not installed.
    """
    _require("PIL", "matplotlib")
    check_opacity(opacity)
    files = _files(save)
    if not isinstance(title, str):
        raise ArgumentTypeError(f"`title` must be text; got {title!r}")
    if isinstance(compare, str | bytes) or not isinstance(compare, Iterable):
        raise ArgumentTypeError(f"`compare` must be a list of r, such as [8, 16]; got {compare!r}")
    preprocess = preprocess_of(model, size=size, mean=mean, std=std)
    inputs, pixels, names = _read(images, preprocess, scale)
    with merging(model) as patched, warnings.catch_warnings():
        warnings.simplefilter("ignore", ClampWarning)  # the tokens that are left are in the drawing
        own = patched.r if patched.r != 0 else _R
        merged = follow_images(patched, inputs, pixels, names, [own if r is None else r, *compare])
    shown = layers_to_draw(merged.depth) if layers is None else layers
    strip = draw_strip(merged, shown, title=title, opacity=opacity, background=background)
    for path in files:
        if path.suffix.lower() in PAGES:
            page = html_page(
                merged, title or f"Tokens merged by {type(model).__name__}", opacity=opacity
            )
            path.write_text(page, encoding="utf-8")
        else:
            strip.save(path)
    return strip.image


def _require(*packages: str) -> None:
    """Raise if a package is missing, with the command that installs it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"drawing needs {' and '.join(missing)}, not installed here; install with: {install_hint('cli')}"
        )


def _files(save: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files to write; raise, before any work is done, if one cannot be written."""
    given = [save] if isinstance(save, str | os.PathLike) else save
    listed = isinstance(given, list | tuple) and all(
        isinstance(one, str | os.PathLike) for one in given
    )
    if not listed:
        raise ArgumentTypeError(
            f"`save` must be the name of a file, or a list of names; got {save!r}"
        )
    files = [Path(one) for one in given]
    for path in files:
        if path.suffix.lower() not in (*STRIPS, *PAGES):
            raise ArgumentValueError(
                f"`save` must name files that end in {', '.join((*STRIPS, *PAGES))}; got {str(path)!r}"
            )
        check_writable(path, "save")
    return files


def _read(
    images: Any, preprocess: Preprocess, scale: int | None
) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    """Return inputs (n, C, H, W), the pixels to draw on, and names, of images in any of the forms."""
    given = list(images) if isinstance(images, list | tuple) else [images]
    found: list[tuple[np.ndarray, Image | None, str]] = []
    for one in given:
        found += _inputs(one, preprocess)
    if not found:
        raise ArgumentValueError(
            "`images` must name at least one image; got an empty list or batch"
        )
    shapes = {array.shape for array, _, _ in found}
    if len(shapes) > 1:
        raise ArgumentValueError(
            f"`images` must all have the same shape once they are prepared; got {sorted(shapes)}. Call "
            "this for each, or pass images that are not prepared"
        )
    pixels = [pixels_to_draw(array, preprocess, scale, image) for array, image, _ in found]
    names = [name for _, _, name in found]
    if len(names) > 1:
        names = [name or f"image {number}" for number, name in enumerate(names)]
    return np.stack([array for array, _, _ in found]), pixels, [name or "image" for name in names]


def _inputs(one: Any, preprocess: Preprocess) -> list[tuple[np.ndarray, Image | None, str]]:
    """Return (input, the image that it is from, its name), several for a batch."""
    from PIL import Image

    if isinstance(one, str | os.PathLike):
        image = read_image(Path(one))
        return [(preprocess(image), image, Path(one).name)]
    if isinstance(one, Image.Image):
        image = in_colour(one, "an image of `images`")
        return [(preprocess(image), image, Path(str(getattr(one, "filename", ""))).name)]
    if not hasattr(one, "dtype") or not hasattr(one, "shape"):
        raise ArgumentTypeError(
            _NOT_AN_IMAGE.format(f"{type(one).__module__}.{type(one).__qualname__}")
        )
    array = to_numpy(one)
    channels = preprocess.channels
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        image = in_colour(Image.fromarray(array), "an array of `images`")
        return [(preprocess(image), image, "")]
    prepared = np.issubdtype(array.dtype, np.floating) and array.ndim in (3, 4)
    if not prepared or array.shape[-3] != channels:
        raise ArgumentTypeError(
            _NOT_AN_IMAGE.format(f"{array.dtype} of shape {array.shape}")
            + f" This model takes C = {channels} channels."
        )
    batch = array if array.ndim == 4 else array[None]
    return [(image, None, "") for image in batch.astype(np.float32)]


_NOT_AN_IMAGE = (
    "`images` must be a path, a Pillow image, an array (H, W, 3) or (H, W) of uint8, or a tensor or array "
    "(C, H, W) or (B, C, H, W) of floats as the model takes it, or a list of these; got {}."
)
