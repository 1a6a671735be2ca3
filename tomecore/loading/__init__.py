"""Models by name, for the command line: ``timm:vit_base_patch16_224``, ``module:function`` and others.

Each loader returns what the tools need of a model: the model in evaluation mode, its framework, and how
pictures become its input. Libraries are imported when one of their models is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of
from tomecore.loading import _paddle, _torch
from tomecore.loading._function import function_model
from tomecore.loading._loaded import Loaded

__all__ = ["FORMS", "Loaded", "adapter_of", "has_random_weights", "load"]

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
        pretrained: with the weights its library offers (downloaded by the library); otherwise random.
        weights: a file of weights to load instead: safetensors, a torch checkpoint, or ``.pdparams``.
        resolution: pixels on a side of the input; None: the model's own.

    Raises:
        ArgumentValueError: no such form, library, model or file.
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
        _load_weights(found.model, Path(weights))
    found.model.eval()
    return Loaded(name, found.model, found.preprocess, found.transform)


def has_random_weights(
    name: str, pretrained: bool = False, weights: Path | str | None = None
) -> bool:
    """Whether :func:`load` with these arguments gives a model that nobody trained, as far as names say."""
    source, _, rest = name.partition(":")
    trained = source == "digits" or (source == "transformers" and Path(rest).is_dir())
    return source in _LOADERS and not trained and not pretrained and weights is None


def adapter_of(framework: str) -> Any:
    """``tomecore.adapters.torch`` or ``tomecore.adapters.paddle``."""
    return importlib.import_module(f"tomecore.adapters.{framework}")


def _load_weights(model: Any, path: Path) -> None:
    if not path.is_file():
        raise ArgumentValueError(f"there is no file of weights {path}")
    if framework_of(model) == "paddle":
        from tomecore.models.paddle import load_weights

        load_weights(model, str(path))
        return
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ArgumentValueError(f"the weights in {path} do not fit the model. {error}") from error
