"""Patches for real models: ``tomecore.adapters.torch`` and ``tomecore.adapters.paddle``.

Both are imported when first used: ``import tomecore; tomecore.adapters.paddle.apply_patch(model)``.
``tomecore.adapters.Spec`` describes a block that they do not know yet, for their ``register``, and
``tomecore.adapters.Anatomy`` and ``tomecore.adapters.Trim`` its attention of a few queries.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("paddle", "torch")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tomecore.adapters.{name}")
    if name in {"Anatomy", "Spec", "Trim"}:
        return getattr(importlib.import_module("tomecore.adapters.engine.spec"), name)
    if name in {"apply_patch", "remove_patch", "handle", "register"}:
        raise AttributeError(
            f"tomecore.adapters has no {name!r} of its own: import the framework's module, for example "
            f"`import tomecore.adapters.torch as tome; tome.{name}(model)`"
        )
    raise AttributeError(f"module 'tomecore.adapters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["Anatomy", "Spec", "Trim", *_MODULES]
