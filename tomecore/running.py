"""The old path of :mod:`tomecore.frameworks`."""

from tomecore.frameworks import (
    FRAMEWORKS,
    evaluating,
    framework_of,
    logits_of,
    predict,
    require,
    to_numpy,
    to_tensor,
)

__all__ = [
    "FRAMEWORKS",
    "evaluating",
    "framework_of",
    "logits_of",
    "predict",
    "require",
    "to_numpy",
    "to_tensor",
]
