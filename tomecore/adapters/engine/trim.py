"""Whether the last block may compute the prefix tokens only.

The checks run when the model is patched, and some of them again in each forward pass. The modules after
the blocks must read no other token, and the block's attention must be the one for which the family's
trimmed form (``Spec.trim``) was written. A module that tomecore does not know is refused.
"""

from __future__ import annotations

import types
from typing import Any

from tomecore.adapters.engine.contract import Contract, why_other_attention
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Spec, Trim, attribute, matches, qualified_name
from tomecore.adapters.engine.swap import original_class

__all__ = ["known_base", "why_not_trimmed"]

#: classes of lists of blocks
_LISTS = (
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "paddle.nn.layer.container.LayerList",
    "paddle.nn.layer.container.Sequential",
)


def why_not_trimmed(host: Host, spec: Spec, model: Any, tower: Any, block: Any) -> str | None:
    """Return why the last block, ``block``, must compute all tokens; None if prefix tokens are enough."""
    trim = spec.trim
    if trim is None:
        return "tomecore has no form of its last block that computes only prefix tokens"
    if spec.prefix(tower) == 0:
        return "it has no prefix token (class, distillation ...) that could be computed by itself"
    return (
        why_unknown(trim, tower)
        or why_within(spec, trim, tower)
        or trim.why_not(tower)
        or why_around(host, trim, model, tower)
        or why_other_attention(host, attribute(block, trim.attention), trim.classes)
        or Contract(host, spec, [block], True).why_changed(block, biased=False, trimmed=True)
    )


def why_unknown(trim: Trim, tower: Any) -> str | None:
    """Return why it is unknown which tokens are read after the blocks of ``tower``; None if it is known."""
    names = ", ".join(name.rpartition(".")[2] for name in trim.towers)
    return why_changed(
        tower,
        trim.towers,
        f"which tokens are read after the blocks is not known for {{}} (known: {names})",
    )


def why_within(spec: Spec, trim: Trim, tower: Any) -> str | None:
    """Return why a module between the tower and its blocks, down to their list, is unknown, or None."""
    parts = spec.layers(tower).split(".")  # type: ignore[union-attr]
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        names = trim.within if depth < len(parts) else _LISTS
        unknown = f"which tokens its {path}, a {{}}, reads after the blocks is not known"
        reason = why_changed(attribute(tower, path), names, unknown, f"of its {path}: ")
        if reason is not None:
            return reason
    return None


def why_around(host: Host, trim: Trim, model: Any, tower: Any) -> str | None:
    """Return why a module around the tower, up to ``model``, may read more than prefix tokens, or None."""
    named = dict(host.named_modules(model))
    inside = path = next(path for path, module in named.items() if module is tower)
    while path:
        path = path.rpartition(".")[0]
        unknown = f"which tokens {{}} reads of model.{inside} is not known"
        reason = why_changed(named[path], trim.around, unknown)
        if reason is not None:
            return (
                f"{reason}. If you know that it reads only the prefix tokens, call "
                f"apply_patch(model.{inside}, trim_last=True)"
            )
    return None


def known_base(module: Any, names: tuple[str, ...]) -> type | None:
    """Return the first base class of ``module`` that is among ``names``, or None."""
    for cls in original_class(module).__mro__:
        if matches(cls, names):
            return cls
    return None


def why_changed(module: Any, names: tuple[str, ...], unknown: str, start: str = "") -> str | None:
    """Return a reason if ``module`` has none of the classes ``names``, or methods of its own; else None.

    Args:
        module: a tower, or a module around or within it.
        names: names of the known classes.
        unknown: the reason if ``module`` has none of them; ``{}`` stands for the name of its class.
        start: the beginning of the reason if a subclass, or this object, has another method.
    """
    found, cls = original_class(module), known_base(module, names)
    if cls is None:
        return unknown.format(qualified_name(found))
    for between in found.__mro__[: found.__mro__.index(cls)]:
        for name, value in vars(between).items():
            method = callable(value) or isinstance(value, classmethod)
            public = not name.startswith("_") or hasattr(cls, name)
            if method and public and not name.startswith("__") and not isinstance(value, type):
                return (
                    f"{start}{between.__qualname__} has a {name} of its own, which may read other tokens "
                    f"than {cls.__qualname__} does"
                )
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType | types.MethodType) and hasattr(cls, name):
            return f"{start}its {name} was replaced on this instance, and may read other tokens"
    return None
