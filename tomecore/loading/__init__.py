"""Load models by name, as on the command line, and turn images into their input.

    loaded = load("timm:vit_base_patch16_224", pretrained=True)     # or "module:function", and others
    loaded.model, loaded.framework, loaded.input_shape
    loaded.image(read_image("photo.jpg"))                           # (C, H, W); tomecore.loading.images

A library is imported only when one of its models is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.adapters import is_patched
from tomecore.errors import ArgumentValueError, TomeError
from tomecore.frameworks import evaluating, framework_of, to_tensor
from tomecore.loading import _paddle, _torch
from tomecore.loading._failures import (
    explained,
    first_line,
    offline_if_unreachable,
    quiet,
    shape_errors,
)
from tomecore.loading._function import function_model, function_of
from tomecore.loading._loaded import Loaded
from tomecore.loading._tokens import tokens_of
from tomecore.schedule import R

__all__ = [
    "FORMS",
    "Loaded",
    "adapter_of",
    "first_line",
    "function_of",
    "has_random_weights",
    "load",
    "merging",
    "shape_errors",
    "tokens_of",
]

FORMS = (
    "timm:NAME, torchvision:NAME, transformers:ID_OR_FOLDER_OR_TYPE, open_clip:NAME, "
    "paddleclas:NAME, ppim:NAME, paddle:SIZE (tiny, small, base or large: a plain ViT), "
    "digits:torch, digits:paddle, module:function or file.py:function"
)

_LOADERS: dict[str, Callable[[str, bool, int | None], Loaded]] = {
    "timm": _torch.timm_model,
    "torchvision": _torch.torchvision_model,
    "transformers": _torch.transformers_model,
    "open_clip": _torch.open_clip_model,
    "paddleclas": _paddle.library_model(
        ("ppcls.arch.backbone", "paddleclas.ppcls.arch.backbone"), "--no-deps paddleclas faiss-cpu"
    ),
    "ppim": _paddle.library_model(("ppim.models",), "--no-deps ppim"),
    "paddle": _paddle.plain_model,
    "digits": _paddle.digits_model,
}

#: libraries of torch, whose models can be built without their weights
_TORCH = ("timm", "torchvision", "transformers", "open_clip")
#: libraries that download weights from the same hub
_HUB = ("timm", "transformers", "open_clip")


def load(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | str | None = None,
    resolution: int | None = None,
    shapes_only: bool = False,
) -> Loaded:
    """Load a model by name.

    Args:
        name: one of the forms in :data:`FORMS`. A function is called without arguments and returns a
            model, or a pair of a model and a :class:`tomecore.loading.images.Preprocess`.
        pretrained: load the weights that the library offers (it downloads them); otherwise they are random.
        weights: a file of weights to load instead: safetensors, a torch checkpoint, or ``.pdparams``.
        resolution: pixels on a side of the input; None: the model's own.
        shapes_only: whether only the shapes of random weights matter: large weights of a library of torch
            are then not initialised, which takes most of the time for a large model.

    Raises:
        ArgumentValueError: the form, library, model or file does not exist, an argument is not allowed, or
            the model does not accept images of ``resolution`` pixels.
        TomeError: the library is not installed, or the weights cannot be downloaded.
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        meant = "digits:torch" if source == "digits" else f"timm:{source}, if it is a model of timm"
        raise ArgumentValueError(
            f"{name!r} does not name a model; allowed are {FORMS}. Did you mean {meant}?"
        )
    if pretrained and weights is not None:
        raise ArgumentValueError(
            "`pretrained` and `weights` exclude each other; pass one of the two"
        )
    if resolution is not None and resolution < 1:
        raise ArgumentValueError(f"`resolution` must be at least 1 pixel; got {resolution}")
    with contextlib.ExitStack() as stack:
        unreachable = None
        if pretrained and source in _HUB:
            unreachable = stack.enter_context(offline_if_unreachable())
        skipped = shapes_only and source in _TORCH and not pretrained and weights is None
        if skipped:
            stack.enter_context(_torch.uninitialised())
        stack.enter_context(quiet())
        found = _built(source, name, pretrained, resolution, unreachable)
    if weights is not None:
        if not Path(weights).is_file():
            raise ArgumentValueError(f"there is no file of weights {weights}")
        _load_weights(found, Path(weights))
    (found.whole or found.model).eval()
    if resolution is not None and not shapes_only:
        _check_resolution(found)
    return dataclasses.replace(found, name=name, initialised=not skipped)


def _built(
    source: str, name: str, pretrained: bool, resolution: int | None, unreachable: str | None
) -> Loaded:
    """Return the model of a library or of a function; an error of a library becomes one line."""
    if source not in _LOADERS:
        return function_model(name, pretrained, resolution, tuple(_LOADERS))
    try:
        return _LOADERS[source](name.partition(":")[2], pretrained, resolution)
    except TomeError:
        raise
    except Exception as error:
        reason = explained(error, name, pretrained, resolution, unreachable)
        if reason is None:
            raise
        raise reason from error


def _load_weights(loaded: Loaded, path: Path) -> None:
    """Load a file of weights; raise if it is not one, or does not fit."""
    library = {"torch": _torch, "paddle": _paddle}[loaded.framework]
    try:
        library.load_weights(loaded.model, path)
    except TomeError:
        raise
    except Exception as error:  # what readers of files raise has no common class
        raise ArgumentValueError(
            f"{path} cannot be read as weights ({first_line(error)}); give a file of safetensors, a torch "
            "checkpoint, or .pdparams"
        ) from error


def _check_resolution(loaded: Loaded) -> None:
    """Raise if the model does not accept an image of its own shape, such as 33 pixels for patches of 16."""
    with shape_errors(loaded.input_shape), evaluating(loaded.model):
        zeros = np.zeros((1, *loaded.input_shape), dtype=np.float32)
        loaded.model(to_tensor(loaded.model, zeros))


def has_random_weights(
    name: str, pretrained: bool = False, weights: Path | str | None = None
) -> bool:
    """Whether :func:`load` with these arguments returns an untrained model, judging by the names."""
    source, _, rest = name.partition(":")
    trained = source == "digits" or (source == "transformers" and Path(rest).is_dir())
    return source in _LOADERS and not trained and not pretrained and weights is None


def adapter_of(framework: str) -> Any:
    """Return the module ``tomecore.adapters.torch`` or ``tomecore.adapters.paddle``."""
    return importlib.import_module(f"tomecore.adapters.{framework}")


@contextlib.contextmanager
def merging(model: Any, r: R | None = None) -> Iterator[Any]:
    """Yield the model patched, with ``r`` if it is given; restore the model afterwards."""
    if is_patched(model):
        before = model.r
        try:
            if r is not None:
                model.r = r
            yield model
        finally:
            model.r = before
        return
    adapter = adapter_of(framework_of(model))
    patched = adapter.apply_patch(model, r=0 if r is None else r)
    try:
        yield patched
    finally:
        adapter.remove_patch(patched)
