"""Find where each original token is after each layer, in one forward pass, and where in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tomecore.adapters import Handle, handle_of
from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentValueError, UnsupportedModelError
from tomecore.frameworks import evaluating, named_modules, to_numpy, to_tensor

__all__ = ["Grid", "patch_grid", "sources_by_layer"]


@dataclass(frozen=True)
class Grid:
    """The grid of patches in an image: ``rows`` x ``columns``, each of ``patch`` (height, width) pixels.

    The patches begin at the image's upper left corner; pixels that are left over at its right and lower
    edges belong to no patch.
    """

    rows: int
    columns: int
    patch: tuple[int, int]


def sources_by_layer(model: Any, images: np.ndarray, batch: int = 16) -> list[np.ndarray]:
    """Follow the original tokens through every layer, in one forward pass.

    Args:
        model: a patched model; it runs in evaluation mode, with the r it has.
            ``trace_source`` is not needed. No other thread may use the model meanwhile.
        images: (B, C, H, W) float, as the model takes them.
        batch: images per forward pass.

    Returns:
        One (B, N) int64 array per layer: original token -> slot after that layer. The last one equals
        ``model.tome.source``.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentValueError: there are no images.
        UnsupportedModelError: the model does not build one sequence of tokens from each image.
        NoForwardError: the model is compiled, so its merges cannot be observed.
    """
    tome = handle_of(model)
    if not len(images):
        raise ArgumentValueError(f"`images` must not be empty; got shape {images.shape}")
    parts = [
        _sources_of_batch(tome, model, images[at : at + batch])
        for at in range(0, len(images), batch)
    ]
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _sources_of_batch(tome: Handle, model: Any, images: np.ndarray) -> list[np.ndarray]:
    slots: dict[int, np.ndarray] = {}

    def observer(layer: int, key: Array, plan: MergePlan, sizes: Array, x: Array) -> None:
        slots[layer] = to_numpy(plan.slots)

    with tome.watch(observer), evaluating(model):
        _run(model, to_tensor(model, images))
    tokens = tome.tokens
    for found in slots.values():
        if len(found) != len(images):
            raise UnsupportedModelError(
                f"{type(model).__name__} builds {len(found)} sequences of tokens from {len(images)} "
                "images, so its tokens cannot be followed image by image"
            )
    first = next(iter(slots.values()), None)
    width = tokens[0] if first is None else first.shape[1]
    source = np.broadcast_to(np.arange(width), (len(images), width)).astype(np.int64)
    sources = []
    for layer in range(len(tokens)):
        if layer in slots:
            source = np.take_along_axis(slots[layer].astype(np.int64), source, axis=1)
        sources.append(source)
    return sources


def _run(model: Any, images: Any) -> None:
    """Run a model on images; of one with a text tower (CLIP, LLaVA), only the part that sees them."""
    for name in ("encode_image", "get_image_features"):
        if hasattr(model, name):
            getattr(model, name)(images)
            return
    model(images)


def patch_grid(model: Any, num_tokens: int, size: tuple[int, int]) -> Grid:
    """Return the grid of a patched model's patches in an image of ``size`` (height, width) pixels.

    The grid is read from the model's patch embedding if that is a convolution. Otherwise the patches are
    assumed to be squares, as large as their number allows.

    Args:
        model: a patched model.
        num_tokens: N, the number of tokens that enter its first block.
        size: (height, width) of the input in pixels.

    Raises:
        NotPatchedError: the model is not patched.
        UnsupportedModelError: no grid, or more than one, has this number of patches.
    """
    patches = num_tokens - handle_of(model).protected
    for _, module in named_modules(model):
        if type(module).__name__ in {"Conv2d", "Conv2D"}:
            found = _grid_of_convolution(module, size)
            if found is not None and found.rows * found.columns == patches:
                return found
            break  # a stem, as in hybrid models
    return square_grid(patches, size)


def _grid_of_convolution(convolution: Any, size: tuple[int, int]) -> Grid | None:
    """Return the grid of a convolution without padding; torch and Paddle name its settings differently."""

    def setting(name: str) -> tuple[int, int]:
        value = getattr(convolution, name, None)
        value = getattr(convolution, f"_{name}", None) if value is None else value
        return (value, value) if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]

    kernel, stride = setting("kernel_size"), setting("stride")
    rows, columns = ((n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))
    return Grid(rows, columns, stride) if rows > 0 and columns > 0 else None


def square_grid(patches: int, size: tuple[int, int]) -> Grid:
    """Return the only grid of ``patches`` square patches that fits ``size`` (height, width) in pixels.

    Raises:
        UnsupportedModelError: there is none, or more than one.
    """
    height, width = size
    fits = [
        Grid(height // side, width // side, (side, side))
        for side in range(1, min(size) + 1)
        if (height // side) * (width // side) == patches
    ]
    exact = [grid for grid in fits if height % grid.patch[0] == width % grid.patch[0] == 0]
    fits = exact or fits
    if len(fits) == 1:
        return fits[0]
    why = (
        "no grid of square patches has as many: the model may pack, shuffle or resize its patches"
        if not fits
        else f"squares of {' or '.join(str(grid.patch[0]) for grid in fits)} pixels would give as many"
    )
    raise UnsupportedModelError(
        f"the model computes {patches} patches from an image of {height} x {width} pixels, and their grid "
        f"is unknown: {why}. Draw it yourself with tomecore.visualization.make_visualization and "
        "tomecore.visualization.sources_by_layer."
    )
