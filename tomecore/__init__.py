"""Token Merging for every framework.

``apply_patch(model)`` patches a model of PyTorch or Paddle. ``tomecore.adapters.torch`` and
``tomecore.adapters.paddle`` have it for one framework each. The algorithms, on NumPy, PyTorch, Paddle, JAX
and any other array-API library, are here. ``export`` writes ONNX files, and ``visualize`` draws what
merges. Adapters and frameworks are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from tomecore.core.merging import compose, merge_weighted
from tomecore.core.plan import MergePlan
from tomecore.matching import (
    bipartite_soft_matching,
    kth_bipartite_soft_matching,
    partition_matching,
    random_bipartite_soft_matching,
)
from tomecore.schedule import parse_r, tokens_per_layer

__version__ = "0.1.0"

__all__ = [
    "MergePlan",
    "__version__",
    "bipartite_soft_matching",
    "compose",
    "kth_bipartite_soft_matching",
    "merge_weighted",
    "parse_r",
    "partition_matching",
    "random_bipartite_soft_matching",
    "tokens_per_layer",
]

#: what is imported when it is first used: every package, and the public modules
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
    "exporting",
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
#: functions, and the packages that have them
_FUNCTIONS = {
    "apply_patch": "adapters",
    "remove_patch": "adapters",
    "export": "exporting",
    "visualize": "visualization",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"tomecore.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"tomecore.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'tomecore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, *_FUNCTIONS})
