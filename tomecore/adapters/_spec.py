"""What tomecore knows of one block class: a spec. One small file per model library holds them.

A spec never copies a block's forward. It names the two halves in terms of the block's own submodules,
and lists every child the halves use, so that a block with something more is refused and not served
wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tomecore.adapters._swap import original_class

__all__ = ["Spec", "defines_forward", "nothing", "qualified_name"]


def nothing(module: Any) -> None:
    """The check of a family that has nothing more to check."""


def not_mae(tower: Any) -> bool:
    """False for the classes of masked autoencoders, which were trained without (ToMe, appendix)."""
    names = [qualified_name(cls) for cls in original_class(tower).__mro__]
    return not any(".mae." in n or ".MAE" in n or ".MaskedAutoencoder" in n for n in names)


@dataclass(eq=False)
class Spec:
    """One block class and the tower that owns a list of them.

    Class names are ``module.QualName``; a name that starts with a dot matches any module path that
    ends with it, for classes that are distributed under several paths.

    Args:
        family: what messages and the support table call it.
        blocks: names of the block classes whose forward is understood. A subclass matches if it
            inherits that forward unchanged.
        towers: names of the classes that own the list of blocks, subclasses included.
        layers: the attribute of the tower that holds the list.
        children: every child of the block -> names of the classes allowed there, ``("*",)`` for
            any. A child that is missing here is refused.
        attend: ``(host, block, x, bias, kwargs) -> (residual, key)``, the attention half without the
            skip connection. The key is (B, H, N, D), or None where ``key`` names a module.
        feed: ``(block, x) -> residual``, the other half.
        key: path of the module, below the block, whose output is the key; "" where ``attend``
            returns it.
        key_heads: axis of the heads in the key.
        prefix: ``tower -> int``, tokens at the front that never merge.
        prop_attn: ``tower -> bool``, the default of proportional attention.
        accepts: keyword arguments of the block's forward that may be given while tokens are merged,
            with the only value they may have.
        why_restore: ``tower -> reason`` why ``restore=False`` would give wrong results, or None.
        bypasses: paths of modules below the block whose forward ``attend`` replaces by its own.
        refuse: ``block -> reason`` to refuse a block the other fields cannot tell, or None.
        tower_mixin: a class that wraps methods of the tower which need to see all tokens of every
            layer; for towers that have these methods.
    """

    family: str
    blocks: tuple[str, ...]
    towers: tuple[str, ...]
    layers: str
    children: Mapping[str, tuple[str, ...]]
    attend: Callable[..., Any]
    feed: Callable[..., Any]
    prefix: Callable[[Any], int]
    key: str = ""
    key_heads: int = 1
    prop_attn: Callable[[Any], bool] = not_mae
    accepts: Mapping[str, Any] = field(default_factory=dict)
    why_restore: Callable[[Any], str | None] = nothing
    bypasses: tuple[str, ...] = ()
    refuse: Callable[[Any], str | None] = nothing
    tower_mixin: type | None = None

    def is_block(self, module: Any) -> bool:
        return matches(defines_forward(original_class(module)), self.blocks)

    def mixins_of(self, tower: Any) -> tuple[type, ...]:
        """The mixin, where the tower has what it wraps."""
        if self.tower_mixin is None:
            return ()
        wrapped = [name for name in vars(self.tower_mixin) if not name.startswith("_")]
        cls = original_class(tower)
        return (self.tower_mixin,) if all(hasattr(cls, name) for name in wrapped) else ()

    def is_tower(self, module: Any) -> bool:
        return any(matches(cls, self.towers) for cls in original_class(module).__mro__)


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def matches(cls: type, names: tuple[str, ...]) -> bool:
    name = qualified_name(cls)
    return any(
        one == "*" or one == name or (one.startswith(".") and f".{name}".endswith(one))
        for one in names
    )


def defines_forward(cls: type) -> type:
    """The class in the ancestry of ``cls`` whose ``forward`` would run."""
    return next((c for c in cls.__mro__ if "forward" in vars(c)), cls)
