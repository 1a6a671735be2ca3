"""Patch real models: ``tomecore.adapters.torch`` and ``tomecore.adapters.paddle``.

Both are imported on first use: ``import tomecore; tomecore.adapters.paddle.apply_patch(model)``.
To add a block that they do not know, describe it by ``tomecore.adapters.Spec``, its attention by
``tomecore.adapters.Anatomy`` and its form for ``trim_last`` by ``tomecore.adapters.Trim``, and pass that to
``register``. ``handle_of`` and ``is_patched`` work for models of any framework; tools use only these two and
``model.tome``.
"""

from __future__ import annotations

import importlib
from typing import Any

from tomecore.adapters.engine.handle import PARTS, Handle
from tomecore.adapters.engine.host import PropAttn
from tomecore.adapters.engine.patch import handle_of, is_patched
from tomecore.adapters.engine.spec import Anatomy, Spec, Trim

__all__ = ["PARTS", "Anatomy", "Handle", "PropAttn", "Spec", "Trim", "handle_of", "is_patched"]

_MODULES = ("paddle", "torch")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tomecore.adapters.{name}")
    if name in {"apply_patch", "remove_patch", "handle", "register"}:
        raise AttributeError(
            f"tomecore.adapters has no {name!r} of its own: import the framework's module, for example "
            f"`import tomecore.adapters.torch as tome; tome.{name}(model)`"
        )
    raise AttributeError(f"module 'tomecore.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
