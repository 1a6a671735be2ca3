"""May the last block make the tokens at the front alone? Asked before a model is patched, and later.

What is behind the blocks must read no other token, and the block's attention must be the one that the
family's trimmed form (``Spec.trim``) was written for. What nobody here has read is refused.
"""

from __future__ import annotations

import types
from typing import Any

from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import (
    Spec,
    Trim,
    attribute,
    matches,
    qualified_name,
)
from tomecore.adapters.engine.swap import original_class

__all__ = ["known", "why_not_trimmed"]

#: what lists of blocks are
_LISTS = (
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "paddle.nn.layer.container.LayerList",
    "paddle.nn.layer.container.Sequential",
)


def why_not_trimmed(host: Host, spec: Spec, model: Any, tower: Any, block: Any) -> str | None:
    """Why the last block, ``block``, must make all tokens; None if it need not."""
    trim = spec.trim
    if trim is None:
        return "tomecore has no form of its last block that makes single tokens"
    if spec.prefix(tower) == 0:
        return "it has no token at the front (class, distillation ...) that could be read alone"
    return (
        why_unknown(trim, tower)
        or why_within(spec, trim, tower)
        or trim.why_not(tower)
        or why_around(host, trim, model, tower)
        or why_other_attention(host, trim, block)
        or Contract(host, spec, [block], True).why_changed(block, biased=False, trimmed=True)
    )


def why_unknown(trim: Trim, tower: Any) -> str | None:
    """Whether ``tower`` has the methods that were read, and no others in their place."""
    if known(tower, trim.towers) is None:
        return (
            "which tokens are read behind the blocks is not known of "
            f"{qualified_name(original_class(tower))} (known: "
            f"{', '.join(name.rpartition('.')[2] for name in trim.towers)})"
        )
    return why_changed(tower, trim.towers)


def why_within(spec: Spec, trim: Trim, tower: Any) -> str | None:
    """Whether what lies between the tower and its blocks, down to their list, is what was read."""
    parts = spec.layers(tower).split(".")  # type: ignore[union-attr]
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = attribute(tower, path)
        names = trim.within if depth < len(parts) else _LISTS
        reason = why_changed(module, names)
        if known(module, names) is None:
            found = qualified_name(original_class(module))
            return f"which tokens its {path}, a {found}, reads behind the blocks is not known"
        if reason is not None:
            return f"of its {path}: {reason}"
    return None


def why_around(host: Host, trim: Trim, model: Any, tower: Any) -> str | None:
    """Whether all that holds the tower, up to ``model``, is known to read its first tokens alone."""
    named = dict(host.named_modules(model))
    inside = next(path for path, module in named.items() if module is tower)
    path = inside
    while path:
        path = path.rpartition(".")[0]
        module = named[path]
        reason = why_changed(module, trim.around)
        if known(module, trim.around) is None:
            found = qualified_name(original_class(module))
            reason = f"which tokens {found} reads of model.{inside} is not known"
        if reason is not None:
            return (
                f"{reason}. Where you know that it reads the first tokens alone, call "
                f"apply_patch(model.{inside}, trim_last=True)"
            )
    return None


def known(module: Any, names: tuple[str, ...]) -> type | None:
    """The class among ``names`` that ``module`` is one of."""
    for cls in original_class(module).__mro__:
        if matches(cls, names):
            return cls
    return None


def why_changed(module: Any, names: tuple[str, ...]) -> str | None:
    """Whether a subclass, or this very object, has methods that the known class has not."""
    found, cls = original_class(module), known(module, names)
    if cls is None:
        return None
    for between in found.__mro__[: found.__mro__.index(cls)]:
        for name, value in vars(between).items():
            method = callable(value) or isinstance(value, classmethod)
            public = not name.startswith("_") or hasattr(cls, name)
            if method and public and not name.startswith("__") and not isinstance(value, type):
                return (
                    f"{between.__qualname__} has a {name} of its own, which may read other tokens than "
                    f"{cls.__qualname__} does"
                )
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType | types.MethodType) and hasattr(cls, name):
            return f"its {name} was replaced on this instance, and may read other tokens"
    return None


def why_other_attention(host: Host, trim: Trim, block: Any) -> str | None:
    """Whether the attention is of a known class and holds nothing unknown."""
    attention = attribute(block, trim.attention)
    cls = original_class(attention)
    for name, parts in trim.classes.items():
        if matches(cls, (name,)):
            held = [child for child, _ in host.named_children(attention)]
            held += host.own_tensors(attention)
            more = [part for part in held if part not in parts]
            if not more:
                return None
            return (
                f"its attention ({qualified_name(cls)}) holds {', '.join(more)}, which the form for "
                "single tokens would leave out"
            )
    return (
        f"its attention is a {qualified_name(cls)}, and the form for single tokens is written for "
        f"{', '.join(trim.classes)}"
    )
