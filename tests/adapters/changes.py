"""Changes that users make to a block or a module of a patched model, in both frameworks."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle
import torch

__all__ = ["around", "calling_through", "module_at", "own_forward", "replaced", "without_masks"]


def _asks_inner(cls: Any) -> Any:
    """A wrapper that looks up in the module inside what it does not have itself, as adapters do."""

    class Around(cls):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name == "inner":
                    raise
                return getattr(super().__getattr__("inner"), name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    return Around


_AROUND = {"torch": _asks_inner(torch.nn.Module), "paddle": _asks_inner(paddle.nn.Layer)}


def around(fw: Any, module: Any) -> Any:
    """An adapter around ``module`` that does nothing yet."""
    return _AROUND[fw.name](module)


def module_at(block: Any, path: str) -> tuple[Any, str, Any]:
    """(parent, name, module) at a dotted path; ``*`` is the first child."""
    parent, name, module = None, "", block
    for part in path.split("."):
        parent, name = module, part
        module = next(iter(parent)) if part == "*" else getattr(parent, part)
        if part == "*":
            name = "0"
    return parent, name, module


@contextmanager
def replaced(parent: Any, name: str, new: Any) -> Iterator[None]:
    """Put ``new`` in the place of a child, and the child back afterwards."""
    old = getattr(parent, name)
    setattr(parent, name, new)
    try:
        yield
    finally:
        setattr(parent, name, old)


@contextmanager
def own_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Give ``module`` a forward of its own, and take it away afterwards."""
    module.forward = types.MethodType(forward, module)
    try:
        yield
    finally:
        del module.forward


def calling_through(calls: list[Any]) -> Callable[..., Any]:
    """A forward that notes its call and calls the one it replaces, as profilers and accelerate do."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return type(self).forward(self, *args, **kwargs)

    return forward


def without_masks(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A forward that takes a mask and ignores it."""
    for name in ("attn_mask", "attention_mask"):
        if name in kwargs:
            kwargs[name] = None
    return type(self).forward(self, *args, **kwargs)
