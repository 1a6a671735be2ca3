"""Follow images through a patched model at several r, and keep what is needed to draw them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.loading import shape_errors
from tomecore.loading.images import Preprocess
from tomecore.schedule import R
from tomecore.visualization._paint import group_sizes, make_visualization
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MergedImages",
    "check_layers",
    "follow_images",
    "layers_to_draw",
    "pixels_to_draw",
    "printable",
]

#: without a scale, images are drawn with at least this many pixels on the shorter side
_SHORTEST = 320
#: pixels on a side of one image, at most
_LARGEST = 8192
#: a patch that is drawn needs this many pixels: a line on each side, and some colour between them
_PATCH = 8
#: mean difference, of 255, up to which two images show the same part of a photograph when both are small:
#: the same part differs by at most 4.5, and at 224 pixels one that is a tenth larger by 10 and more
_SAME = 5.0


@dataclass(frozen=True)
class MergedImages:
    """Images, and the slots of their patches after every layer at every r.

    Args:
        names: names of the images.
        pixels: (H, W, 3) uint8 of each image: the part that the model saw, whole patches only, at the
            scale of the drawing.
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
        """Number of layers of the model; they are numbered from 0."""
        return len(self.sources[0])

    def tokens(self, number: int, layer: int) -> int:
        """Return the tokens left after a layer, at the r of that number; layer -1: before the first."""
        if layer < 0:
            return int(self.sources[number][0].shape[1])
        return int(self.sources[number][layer].max()) + 1

    def paint(self, image: int, number: int, layer: int, opacity: float = 1.0) -> np.ndarray:
        """Return (H, W, 3) uint8: an image after a layer, from 0, at the r of that number."""
        source = self.sources[number][layer][image]
        return make_visualization(
            self.pixels[image], source, self.grid.patch, self.prefix, opacity=opacity
        )

    def groups(self, image: int, number: int, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) the patches in each group after a layer, largest first, and (n, 3) their colours."""
        source = self.sources[number][layer][image]
        return group_sizes(self.pixels[image], source, self.grid.patch, self.prefix)


def follow_images(
    model: Any,
    images: np.ndarray,
    pixels: Sequence[np.ndarray],
    names: Sequence[str],
    r: Sequence[R],
    progress: Callable[[str], None] = lambda step: None,
) -> MergedImages:
    """Run a patched model on images at each r, and keep the slots of their tokens.

    Args:
        model: a patched model; its r is the last of ``r`` afterwards.
        images: (n, C, H, W) float, as the model takes them.
        pixels: n images (k * H, k * W, 3) uint8 to draw on, by :func:`pixels_to_draw`.
        names: names of the images.
        r: one schedule or more.
        progress: called with a line of text before each of them.

    Raises:
        ArgumentValueError: the model does not accept images of this shape.
        UnsupportedModelError: the grid of patches in the image is unknown.
    """
    sources = []
    for schedule in r:
        progress(f"running the model at r={schedule}")
        model.r = schedule
        with shape_errors(images.shape[1:]):
            sources.append(tuple(sources_by_layer(model, images)))
    size = (int(images.shape[2]), int(images.shape[3]))
    grid = patch_grid(model, sources[0][0].shape[1], size)
    times = pixels[0].shape[0] // size[0]
    more = -(-_PATCH // (times * min(grid.patch)))
    patch = (grid.patch[0] * times, grid.patch[1] * times)
    height, width = grid.rows * patch[0], grid.columns * patch[1]
    return MergedImages(
        names=tuple(names),
        pixels=tuple(_enlarged(one[:height, :width], more) for one in pixels),
        grid=Grid(grid.rows, grid.columns, (patch[0] * more, patch[1] * more)),
        prefix=model.tome.protected,
        r=tuple(r),
        sources=tuple(sources),
    )


def pixels_to_draw(
    array: np.ndarray, preprocess: Preprocess, scale: int | None = None, image: Any = None
) -> np.ndarray:
    """Return (k * H, k * W, 3) uint8: what the model sees, k times as large.

    Args:
        array: (C, H, W) float, the model's input.
        preprocess: the mean and standard deviation of ``array``.
        scale: k; None: large enough to be seen.
        image: the Pillow image that ``array`` was prepared from, or None. Its own pixels are drawn if
            ``preprocess`` cuts the part from it that ``array`` shows; otherwise those of ``array``, enlarged.

    Raises:
        ArgumentValueError: ``scale`` is not at least 1, or so large that the drawing would be enormous.
    """
    from PIL import Image

    seen = preprocess.pixels(array)
    height, width = seen.shape[:2]
    times = (
        -(-_SHORTEST // min(height, width)) if scale is None else whole_number(scale, "scale", 1)
    )
    if times * max(height, width) > _LARGEST:
        raise ArgumentValueError(
            f"`scale` must be at most {_LARGEST // max(height, width)} for images of {height} x {width} "
            f"pixels, so that a drawing of one has at most {_LARGEST} pixels on a side; got {scale}"
        )
    if times == 1:
        return seen
    if image is not None:
        size = (height * times, width * times)
        cut = dataclasses.replace(preprocess, size=size).cut(image).convert("RGB")
        if (
            np.abs(_coarse(cut, seen.shape) - _coarse(Image.fromarray(seen), seen.shape)).mean()
            <= _SAME
        ):
            return np.asarray(cut)
    return _enlarged(seen, times)


def layers_to_draw(depth: int, count: int = 4) -> list[int]:
    """Return ``count`` layers, from 0, spread over ``depth``, the last one included; or all, if fewer."""
    return sorted({max(1, round(depth * part / count)) - 1 for part in range(1, count + 1)})


def check_layers(layers: Sequence[int], depth: int) -> list[int]:
    """Return the layers in order, each once; raise if the model does not have one of them."""
    if isinstance(layers, str | bytes) or not isinstance(layers, Iterable):
        raise ArgumentTypeError(
            f"`layers` must be a list of layers, such as [0, 5]; got {layers!r}"
        )
    numbers = [whole_number(layer, "layers") for layer in layers]
    if not numbers or max(numbers) >= depth:
        raise ArgumentValueError(
            f"`layers` must name layers of the model, from 0 to {depth - 1}; got {list(layers)}"
        )
    return sorted(set(numbers))


def printable(name: str) -> str:
    """Return a file name as one line of text, with escapes for characters that cannot be printed."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in name
    )


def _coarse(image: Image, shape: Sequence[int]) -> np.ndarray:
    """Return an image as averages of about 8 x 8 pixels of one that has this shape."""
    from PIL.Image import Resampling

    size = (max(2, shape[1] // 8), max(2, shape[0] // 8))
    return np.asarray(image.resize(size, Resampling.BOX), dtype=np.int64)


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    """Return (times * H, times * W, 3) uint8, smoothly enlarged."""
    if times == 1:
        return pixels
    from PIL import Image
    from PIL.Image import Resampling

    size = (pixels.shape[1] * times, pixels.shape[0] * times)
    return np.asarray(Image.fromarray(pixels).resize(size, Resampling.BICUBIC))
