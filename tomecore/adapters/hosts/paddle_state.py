"""What rides on an activation of Paddle, and gets onto the copies that recomputation makes of it.

Reentrant recomputation (``fleet.utils.recompute``) hands a block copies made by
``x._new_shared_tensor()`` and ``x.detach()``; on the activation itself, and nowhere else, these two are
wrapped so that the copy carries the run on.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import paddle

from tomecore.adapters.engine.state import Rider, ridden
from tomecore.backends import Array

__all__ = ["ridden_on", "ride"]


def ridden_on(x: Array, name: str, config: Any) -> Any:
    """What rides on ``x`` under ``name`` for ``config``; None where nothing does."""
    return ridden(vars(x).get(name), config)


def ride(x: Array, name: str, config: Any, value: Any) -> None:
    """Let ``value`` ride on ``x`` under ``name``, and on copies that a reentrant recomputation makes."""
    setattr(x, name, Rider(config, value))
    _carry(x, "_new_shared_tensor")
    if not paddle.is_grad_enabled() and not x.stop_gradient:
        # Only inside a reentrant recomputation, which keeps x: elsewhere x may be a temporary.
        _carry(x, "detach")


def _carry(x: Array, name: str) -> None:
    """Let copies that ``x`` makes of itself by method ``name`` carry what rides on it.

    Weakly: Paddle's tensors are not garbage collected, and a reference to itself would keep one.
    """
    if hasattr(type(x), name):
        setattr(x, name, functools.partial(_copy, weakref.ref(x), name))


def _copy(ref: weakref.ref[Any], name: str) -> Array:
    x = ref()
    if x is None:
        raise RuntimeError(
            f"{name}() was called on an activation of a patched model that no variable holds any "
            f"more; keep it in a variable: `y = block(x); y.{name}()`"
        )
    copy = getattr(type(x), name)(x)
    for attribute in ("_tome_run", "_tome_passes"):
        if attribute in vars(x):
            setattr(copy, attribute, vars(x)[attribute])
    return copy
