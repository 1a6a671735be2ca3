"""Token Merging for every framework.

The algorithms, on NumPy, PyTorch, Paddle, JAX and any other array-API library, are here. The patches
for real models are ``tomecore.adapters.torch`` and ``tomecore.adapters.paddle``; they, and the
frameworks, are imported when first used and not before.
"""

from __future__ import annotations

import importlib
from typing import Any

from tomecore.core.merging import compose, merge_weighted
from tomecore.core.plan import MergePlan
from tomecore.matching import (
    bipartite_soft_matching,
    kth_bipartite_soft_matching,
    random_bipartite_soft_matching,
)
from tomecore.schedule import parse_r, tokens_per_layer

__version__ = "0.1.0.dev0"

__all__ = [
    "MergePlan",
    "__version__",
    "bipartite_soft_matching",
    "compose",
    "kth_bipartite_soft_matching",
    "merge_weighted",
    "parse_r",
    "random_bipartite_soft_matching",
    "tokens_per_layer",
]

#: what is imported when it is first used: every storey, and the public modules
_LAZY = (
    "adapters",
    "arithmetic",
    "backends",
    "benchmark",
    "demo",
    "digits",
    "distributed",
    "errors",
    "evaluation",
    "frameworks",
    "images",
    "loading",
    "matching",
    "models",
    "parity",
    "running",
    "schedule",
    "tracing",
    "visualization",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"tomecore.{name}")
    raise AttributeError(f"module 'tomecore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY})
