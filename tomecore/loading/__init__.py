"""Load models by name, as on the command line, and turn images into their input.

    loaded = load("timm:vit_base_patch16_224", pretrained=True)     # or "module:function", and others
    loaded.model, loaded.framework, loaded.input_shape
    loaded.image(read_image("photo.jpg"))                           # (C, H, W); tomecore.loading.images

A library is imported only when one of its models is loaded.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tomecore.adapters import is_patched
from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of
from tomecore.loading import _paddle, _torch
from tomecore.loading._function import function_model
from tomecore.loading._loaded import Loaded
from tomecore.schedule import R

__all__ = ["FORMS", "Loaded", "adapter_of", "has_random_weights", "load", "merging"]

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


def load(
    name: str,
    *,
    pretrained: bool = False,
    weights: Path | str | None = None,
    resolution: int | None = None,
) -> Loaded:
    """Load a model by name.

    Args:
        name: one of the forms in :data:`FORMS`. A function is called without arguments and returns a
            model, or a pair of a model and a :class:`tomecore.loading.images.Preprocess`.
        pretrained: load the weights that the library offers (it downloads them); otherwise they are random.
        weights: a file of weights to load instead: safetensors, a torch checkpoint, or ``.pdparams``.
        resolution: pixels on a side of the input; None: the model's own.

    Raises:
        ArgumentValueError: the form, library, model or file does not exist, or an argument is not allowed.
        TomeError: the library is not installed.
    """
    source, colon, rest = name.partition(":")
    if not colon or not rest:
        raise ArgumentValueError(f"{name!r} does not name a model; allowed are {FORMS}")
    if pretrained and weights is not None:
        raise ArgumentValueError(
            "`pretrained` and `weights` exclude each other; pass one of the two"
        )
    if resolution is not None and resolution < 1:
        raise ArgumentValueError(f"`resolution` must be at least 1 pixel; got {resolution}")
    if source in _LOADERS:
        found = _LOADERS[source](rest, pretrained, resolution)
    else:
        found = function_model(name, pretrained, resolution)
    if weights is not None:
        if not Path(weights).is_file():
            raise ArgumentValueError(f"there is no file of weights {weights}")
        library = {"torch": _torch, "paddle": _paddle}[found.framework]
        library.load_weights(found.model, Path(weights))
    found.model.eval()
    return Loaded(name, found.model, found.preprocess, found.transform)


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
