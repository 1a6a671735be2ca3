"""Patches for real models: ``tomecore.adapters.torch`` and ``tomecore.adapters.paddle``.

Both are imported when first used: ``import tomecore; tomecore.adapters.paddle.apply_patch(model)``.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("paddle", "torch")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tomecore.adapters.{name}")
    if name in {"apply_patch", "remove_patch", "handle"}:
        raise AttributeError(
            f"tomecore.adapters has no {name!r} of its own: import the framework's module, for example "
            f"`import tomecore.adapters.torch as tome; tome.{name}(model)`"
        )
    raise AttributeError(f"module 'tomecore.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(_MODULES)
