"""One plain vision transformer per framework, for the demo and the parity tests.

``tomecore.models.torch`` uses timm's parameter names, ``tomecore.models.paddle`` those of PLSC and
PaddleClas, so published weights load into either without a model library. Each module is imported on first
use, so a user of one framework never loads the other. The models contain no merging code.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__: list[str] = []

_MODULES = ("convert", "digits", "paddle", "torch")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tomecore.models.{name}")
    raise AttributeError(f"module 'tomecore.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_MODULES]
