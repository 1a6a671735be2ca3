"""Attach values to activations of Paddle, and to the copies that recomputation creates.

Reentrant recomputation (``fleet.utils.recompute``) passes copies to a block, which it gets by
``x._new_shared_tensor()`` and ``x.detach()``. These two methods are wrapped on the activation only, so that
the copy gets what was attached to the original.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import paddle

from tomecore.adapters.engine.host import SharedConfig
from tomecore.adapters.engine.state import Attachment, attached_value
from tomecore.backends import Tokens

__all__ = ["attach", "attached_to"]


def attached_to(x: Tokens, name: str, config: SharedConfig) -> Any:
    """Return the value attached to ``x`` under ``name`` for ``config``; None if there is none."""
    return attached_value(vars(x).get(name), config)


def attach(x: Tokens, name: str, config: SharedConfig, value: Any) -> None:
    """Attach ``value`` to ``x`` under ``name``, and to the copies that a reentrant recomputation creates."""
    setattr(x, name, Attachment(config, value))
    _carry(x, "_new_shared_tensor")
    if not paddle.is_grad_enabled() and not x.stop_gradient:
        # Only inside a reentrant recomputation, which keeps x alive: elsewhere x may be a temporary.
        _carry(x, "detach")


def _carry(x: Tokens, name: str) -> None:
    """Wrap the method ``name`` of ``x`` so that the copy it returns gets what is attached to ``x``.

    The wrapper holds ``x`` weakly: Paddle's tensors are not garbage collected, so a cycle would leak ``x``.
    """
    if hasattr(type(x), name):
        setattr(x, name, functools.partial(_copy, weakref.ref(x), name))


def _copy(ref: weakref.ref[Any], name: str) -> Tokens:
    x = ref()
    if x is None:
        raise RuntimeError(
            f"{name}() was called on an activation of a patched model that no variable holds any more; "
            f"keep it in a variable: `y = block(x); y.{name}()`"
        )
    copy = getattr(type(x), name)(x)
    for attribute in ("_tome_state", "_tome_passes"):
        if attribute in vars(x):
            setattr(copy, attribute, vars(x)[attribute])
    return copy
