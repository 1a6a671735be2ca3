"""Record what the two halves of a block rely on, and check that the block still satisfies it.

A merging block does not run its own forward: it runs two halves that reproduce it. The halves rely on the
forward they were written for, on the modules whose forward they replace (bypass), and on an attention that
adds the bias it gets. All of that can change after ``apply_patch``: an adapter replaces an attention, a
module gets its own forward or a hook, a class is monkeypatched. So the contract is recorded when the model is
patched, and checked in every forward pass that merges. Modules that the halves call as modules may change
freely: the new module is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import (
    Spec,
    attribute,
    attributes,
    has_own_forward,
    helper_methods,
    matches,
    qualified_name,
    replaced_forward,
)
from tomecore.adapters.engine.swap import original_class

__all__ = ["Contract", "why_no_anatomy", "why_other_attention"]

#: children that a tool adds to a module without changing what the module computes
_HARMLESS = ("parametrizations",)


#: alternatives, one of which must be found
Known = tuple[Any, ...]
#: path below the block, forwards, names of children, helper methods
Noted = tuple[tuple[str, ...], Known, Known, dict[str, Known]]


class Contract:
    """The state of every block of a tower when it was patched. A contract is immutable.

    Args:
        host: the framework.
        spec: the family of the blocks.
        blocks: the blocks, in order.
        trimmed: whether the last block computes only the prefix tokens (``trim_last``).
    """

    def __init__(self, host: Host, spec: Spec, blocks: list[Any], trimmed: bool) -> None:
        self.host = host
        self.spec = spec
        #: path to the modules whose outputs are the keys
        self.key = tuple(spec.key.split(".")) if spec.key else ()
        self.forwards = _distinct(_forward(original_class(block)) for block in blocks)
        self.helpers = _helpers(host, blocks)
        self.children = _distinct(_child_names(host, block) for block in blocks)
        self.bypassed = tuple(_note(host, blocks, path) for path in spec.bypasses)
        self.bypassed_biased = tuple(_note(host, blocks, path) for path in spec.bypasses_biased)
        path = spec.trim.attention if trimmed and spec.trim is not None else None
        self.bypassed_trimmed = () if path is None else (_note(host, blocks[-1:], path),)
        paths = (*spec.bypasses, *spec.bypasses_biased, spec.attention)
        attending = {part.partition(".")[0] for part in paths}
        #: classes of the children that must treat each token by itself
        self.classes = {
            name: _distinct(type(host.child(block, name)) for block in blocks)
            for names in self.children
            for name in names
            if name not in attending and attending != {""}
        }
        #: the attention that the halves call as a module, with the bias
        self.called = () if not spec.attention else (_note(host, blocks, spec.attention),)
        #: why the anatomy does not describe the attention; if it does, None and the attention
        self.unread, self.read = _anatomy(host, spec, blocks)

    def why_changed(self, block: Any, *, biased: bool, trimmed: bool = False) -> str | None:
        """Return what changed in ``block`` since the model was patched; None if nothing changed.

        Args:
            block: a block that is about to merge, or to attend to merged tokens.
            biased: whether its attention gets a bias.
            trimmed: whether it computes only the prefix tokens.
        """
        spec, cls = self.spec, getattr(block, "_tome_original", type(block))
        if not _among(cls.forward, self.forwards):
            return f"{cls.__qualname__}.forward was replaced after apply_patch"
        for name, functions in self.helpers.items():
            if name in block.__dict__ or not _among(getattr(cls, name, None), functions):
                return f"{name}() was replaced, and the merging forward does not call it"
        if not _same_children(self.host, block, self.children):
            return "a child of the block was added or removed after apply_patch"
        noted = self.bypassed
        if trimmed:
            noted = self.bypassed_trimmed
        elif biased:
            noted = self.bypassed + self.bypassed_biased
        for path, forwards, children, helpers in noted:
            modules = self.modules_at(block, path)
            if modules is None:
                return f"{'.'.join(path)} is no longer there"
            for module in modules:
                reason = self._why_bypassed(
                    module, forwards, children, helpers, "the merging forward"
                )
                if reason is not None:
                    return f"{'.'.join(path)} ({type(module).__name__}) {reason}"
        if trimmed:
            return spec.trim.refuse(attribute(block, spec.trim.attention))  # type: ignore[union-attr]
        if spec.bypasses:
            return spec.refuse(block)
        return None

    def _why_bypassed(
        self,
        module: Any,
        forwards: Known,
        children: Known,
        helpers: dict[str, Known],
        replacement: str,
    ) -> str | None:
        """Return why ``replacement`` no longer replaces the forward of ``module``; None if it does."""
        if not _among(_forward(type(module)), forwards):
            return (
                f"was replaced after apply_patch, or its class got another forward, which {replacement} "
                "does not call"
            )
        if "forward" in module.__dict__ and has_own_forward(module):
            return f"has a forward of its own, which {replacement} does not call"
        if not _same_children(self.host, module, children):
            return f"got or lost children after apply_patch, and {replacement} calls only those it knows"
        for name, functions in helpers.items():
            if name in module.__dict__ or not _among(getattr(type(module), name, None), functions):
                return f"has another {name}(), which {replacement} does not call"
        if self.spec.hooked(self.host, module):
            return (
                f"has a forward hook, which {replacement} does not call; remove the hook, or hook the "
                "modules inside it"
            )
        return None

    def why_unread(self, block: Any) -> str | None:
        """Return why the anatomy does not give the queries, keys and values of ``block``; None if it does."""
        if self.read is None:
            return self.unread
        path, forwards, children, helpers = self.read
        for module in self.modules_at(block, path) or ():
            reason = self._why_bypassed(
                module, forwards, children, helpers, "the attention of the class token"
            )
            if reason is not None:
                return f"{'.'.join(path)} ({type(module).__name__}) {reason}"
        return None

    def unknown_children(self, block: Any) -> list[tuple[str, Any]]:
        """Return the children that must treat each token by itself and whose class has changed."""
        child, found = self.host.child, []
        for name, known in self.classes.items():
            module = child(block, name)
            if type(module) not in known:
                found.append((name, module))
        return found

    def called_otherwise(self, block: Any) -> str | None:
        """Return the path of the attention that gets the bias, if its forward has changed; else None."""
        for path, forwards, *_ in self.called:
            for module in self.modules_at(block, path) or ():
                own = "forward" in module.__dict__ and has_own_forward(module)
                if own or not _among(_forward(type(module)), forwards):
                    return ".".join(path)
        return None

    def modules_at(self, block: Any, path: tuple[str, ...]) -> list[Any] | None:
        """Return the modules at ``path`` below ``block``, ``*`` for all children; None if one is missing."""
        child, module = self.host.child, block
        for depth, name in enumerate(path):
            if name == "*":
                found: list[Any] = []
                for each in module:
                    found += self.modules_at(each, path[depth + 1 :]) or ()
                return found
            module = child(module, name)
            if module is None:
                return None
        return [module]

    def __deepcopy__(self, memo: dict[int, Any]) -> Contract:
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Pickle as None: the blocks of a loaded model are checked again (``checks.contract_of``)."""
        return type(None), ()


def _note(host: Host, blocks: list[Any], path: str) -> Noted:
    """Record the modules at ``path`` below ``blocks``: forwards, children and helper methods."""
    modules = [module for block in blocks for module in attributes(block, path)]
    forwards = _distinct(
        _forward(original_class(module))
        for module in modules
        if replaced_forward(original_class(module)) is None
    )
    children = _distinct(_child_names(host, module) for module in modules)
    return tuple(path.split(".")), forwards, children, _helpers(host, modules)


def _anatomy(host: Host, spec: Spec, blocks: list[Any]) -> tuple[str | None, Noted | None]:
    """Record the attention that the anatomy describes; or return why it describes none."""
    for block in blocks:
        reason = why_no_anatomy(host, spec, block)
        if reason is not None:
            return reason, None
    return None, _note(host, blocks, spec.anatomy.attention)  # type: ignore[union-attr]


def why_no_anatomy(host: Host, spec: Spec, block: Any) -> str | None:
    """Return why no anatomy describes the attention of ``block``; None if one does."""
    if spec.anatomy is None:
        return f"tomecore has no anatomy of the attention of {spec.family}"
    attention = attribute(block, spec.anatomy.attention)
    return why_other_attention(host, attention, spec.anatomy.classes)


def _helpers(host: Host, modules: list[Any]) -> dict[str, Known]:
    """Return the methods that the forwards of ``modules`` may call: name -> their functions."""
    classes = _distinct(original_class(module) for module in modules)
    names = dict.fromkeys(
        name for cls in classes for name in helper_methods(cls, host.module_class)
    )
    return {name: _distinct(getattr(cls, name, None) for cls in classes) for name in names}


def _forward(cls: Any) -> Any:
    return getattr(cls, "forward", None)


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


def _among(value: Any, known: tuple[Any, ...]) -> bool:
    if known and value is known[0]:
        return True
    return any(value is one for one in known)


def _child_names(host: Host, module: Any) -> tuple[str, ...]:
    return tuple(name for name in host.child_names(module) if name not in _HARMLESS)


def _same_children(host: Host, module: Any, known: tuple[tuple[str, ...], ...]) -> bool:
    names = host.child_names(module)
    for one in known:
        if names == one:
            return True
    return _child_names(host, module) in known


def why_other_attention(
    host: Host, attention: Any, classes: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Return why the attention is not one of ``classes`` with the parts listed there, or None."""
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
