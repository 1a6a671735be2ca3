"""Patch real models: ``tomecore.adapters.torch`` and ``tomecore.adapters.paddle``.

Both are imported on first use: ``import tomecore; tomecore.adapters.paddle.apply_patch(model)``.
``tomecore.apply_patch(model)`` and ``tomecore.remove_patch(model)`` find the framework of a model.
To add a block that they do not know, describe it by ``tomecore.adapters.Spec``, its attention by
``tomecore.adapters.Anatomy`` and its form for ``trim_last`` by ``tomecore.adapters.Trim``, and pass that to
``register``. ``handle_of`` and ``is_patched`` work for models of any framework; tools use only these two and
``model.tome``.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeVar

from tomecore.adapters.engine.handle import PARTS, Handle
from tomecore.adapters.engine.host import PropAttn
from tomecore.adapters.engine.patch import handle_of, is_patched
from tomecore.adapters.engine.spec import Anatomy, Spec, Trim
from tomecore.frameworks import framework_of

__all__ = [
    "PARTS",
    "Anatomy",
    "Handle",
    "PropAttn",
    "Spec",
    "Trim",
    "apply_patch",
    "handle_of",
    "is_patched",
    "remove_patch",
]

Model = TypeVar("Model")

_MODULES = ("paddle", "torch")


def apply_patch(model: Model, **settings: Any) -> Model:
    """Patch a PyTorch or Paddle model in place so that its blocks merge tokens.

    Args:
        model: as in ``tomecore.adapters.torch.apply_patch``, or a model of Paddle.
        settings: as there.

    Returns:
        The same model, now with ``model.r`` and ``model.tome``.

    Raises:
        ArgumentTypeError: ``model`` belongs to neither framework.
        UnsupportedModelError, ArgumentTypeError, ArgumentValueError: as there.
    """
    patched: Model = _adapter_of(model).apply_patch(model, **settings)
    return patched


def remove_patch(model: Model) -> Model:
    """Undo :func:`apply_patch` completely, and return the model.

    Raises:
        ArgumentTypeError: ``model`` belongs to neither framework.
        NotPatchedError, UnsupportedModelError: as ``tomecore.adapters.torch.remove_patch`` raises them.
    """
    unpatched: Model = _adapter_of(model).remove_patch(model)
    return unpatched


def _adapter_of(model: Any) -> Any:
    """Return the module of the framework that a model belongs to."""
    return importlib.import_module(f"tomecore.adapters.{framework_of(model)}")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tomecore.adapters.{name}")
    if name in {"handle", "register"}:
        raise AttributeError(
            f"tomecore.adapters has no {name!r} of its own: import the framework's module, for example "
            f"`import tomecore.adapters.torch as tome; tome.{name}(model)`"
        )
    raise AttributeError(f"module 'tomecore.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
