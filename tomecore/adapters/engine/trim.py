"""Whether the last block may compute the prefix tokens only.

Checked when the model is patched, and in part again in each forward pass. What is behind the blocks must
read no other token, and the block's attention must be the one that the family's trimmed form
(``Spec.trim``) was written for. What nobody here has read is refused.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Spec, Trim, attribute, matches, qualified_name
from tomecore.adapters.engine.swap import original_class

__all__ = ["known", "why_not_trimmed", "why_other_attention"]

#: what lists of blocks are
_LISTS = (
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "paddle.nn.layer.container.LayerList",
    "paddle.nn.layer.container.Sequential",
)


def why_not_trimmed(host: Host, spec: Spec, model: Any, tower: Any, block: Any) -> str | None:
    """Why the last block, ``block``, must compute all tokens; None if it need not."""
    trim = spec.trim
    if trim is None:
        return "tomecore has no form of its last block that computes only prefix tokens"
    if spec.prefix(tower) == 0:
        return "it has no prefix token (class, distillation ...) that could be read alone"
    return (
        why_unknown(trim, tower)
        or why_within(spec, trim, tower)
        or trim.why_not(tower)
        or why_around(host, trim, model, tower)
        or why_other_attention(host, attribute(block, trim.attention), trim.classes)
        or Contract(host, spec, [block], True).why_changed(block, biased=False, trimmed=True)
    )


def why_unknown(trim: Trim, tower: Any) -> str | None:
    """Whether ``tower`` has the methods that were read, and no others in their place."""
    names = ", ".join(name.rpartition(".")[2] for name in trim.towers)
    return why_changed(
        tower,
        trim.towers,
        f"which tokens are read behind the blocks is not known of {{}} (known: {names})",
    )


def why_within(spec: Spec, trim: Trim, tower: Any) -> str | None:
    """Whether what lies between the tower and its blocks, down to their list, is what was read."""
    parts = spec.layers(tower).split(".")  # type: ignore[union-attr]
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        names = trim.within if depth < len(parts) else _LISTS
        unknown = f"which tokens its {path}, a {{}}, reads behind the blocks is not known"
        reason = why_changed(attribute(tower, path), names, unknown, f"of its {path}: ")
        if reason is not None:
            return reason
    return None


def why_around(host: Host, trim: Trim, model: Any, tower: Any) -> str | None:
    """Whether all that holds the tower, up to ``model``, is known to read only its prefix tokens."""
    named = dict(host.named_modules(model))
    inside = path = next(path for path, module in named.items() if module is tower)
    while path:
        path = path.rpartition(".")[0]
        unknown = f"which tokens {{}} reads of model.{inside} is not known"
        reason = why_changed(named[path], trim.around, unknown)
        if reason is not None:
            return (
                f"{reason}. Where you know that it reads only the prefix tokens, call "
                f"apply_patch(model.{inside}, trim_last=True)"
            )
    return None


def known(module: Any, names: tuple[str, ...]) -> type | None:
    """The class among ``names`` that ``module`` is one of."""
    for cls in original_class(module).__mro__:
        if matches(cls, names):
            return cls
    return None


def why_changed(module: Any, names: tuple[str, ...], unknown: str, start: str = "") -> str | None:
    """Whether ``module`` is of none of the classes ``names``, or has methods that its class has not.

    Args:
        module: a tower, or what is around or within it.
        names: of the classes that were read.
        unknown: the reason where it is none of them; ``{}`` is the name of its class.
        start: of the reason where a subclass, or this very object, has another method.
    """
    found, cls = original_class(module), known(module, names)
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


def why_other_attention(
    host: Host, attention: Any, classes: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Whether the attention is of a known class and holds nothing unknown."""
    cls = original_class(attention)
    for name, parts in classes.items():
        if matches(cls, (name,)):
            held = [child for child, _ in host.named_children(attention)]
            held += host.own_tensors(attention)
            more = [part for part in held if part not in parts]
            if not more:
                return None
            return (
                f"its attention ({qualified_name(cls)}) holds {', '.join(more)}, which the "
                "family's description of it leaves out"
            )
    return (
        f"its attention is a {qualified_name(cls)}, and the family describes {', '.join(classes)}"
    )
