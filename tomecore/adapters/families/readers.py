"""Mixins of towers whose readers of intermediate layers must get all tokens of every layer.

Each wraps one method. The arguments of ``super`` are written out, because Paddle's static graphs replace
``super()`` with ``super(type(self), self)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.state import Switch
from tomecore.adapters.engine.swap import Swapped

__all__ = ["ForwardIntermediates", "IntermediateLayers", "read_with"]


def read_with(
    switch: Switch,
    tracing: bool,
    read: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call ``read`` while ``switch``, ``dense`` or ``recording`` of the model's config, is on."""
    entered = switch.enter(tracing)
    try:
        return read(*args, **kwargs)
    finally:
        switch.leave(entered, tracing)


class ForwardIntermediates(Swapped):
    """Mixin for towers of timm and open_clip."""

    _tome: Config

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Call the tower's own method; every block returns all tokens."""
        read = super(ForwardIntermediates, self).forward_intermediates  # type: ignore[misc] # noqa: UP008
        return read_with(self._tome.dense, self._tome.host.tracing(), read, args, kwargs)


class IntermediateLayers(Swapped):
    """Mixin for DINO and DINOv2, in torch and in Paddle."""

    _tome: Config

    def get_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Call the tower's own method; every block returns all tokens."""
        read = super(IntermediateLayers, self).get_intermediate_layers  # type: ignore[misc] # noqa: UP008
        return read_with(self._tome.dense, self._tome.host.tracing(), read, args, kwargs)
