"""What the two halves of a block stand for, and whether the block is still that.

A merging block does not run its own forward: it runs two halves that reproduce it. They hold for the forward
that was read, for the modules they call in place of their forward (bypass), and for an attention that adds
the
bias it is given. All of that can change after ``apply_patch``: an adapter takes the place of an attention, a
module gets a forward or a hook of its own, a class is monkeypatched. So the contract is noted when the
model is
patched and checked in every forward pass that merges. What the halves call as a module may change freely: the
new one is called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import (
    Spec,
    attribute,
    attributes,
    has_own_forward,
    helper_methods,
    replaced_forward,
)
from tomecore.adapters.engine.swap import original_class

__all__ = ["Contract"]

#: children that a tool adds to a module without changing what the module computes
_HARMLESS = ("parametrizations",)


#: alternatives, of which one must be there
Known = tuple[Any, ...]
#: path below the block, forwards, names of children, helper methods
Noted = tuple[tuple[str, ...], Known, Known, dict[str, Known]]


class Contract:
    """What was true of every block of a tower when it was patched. Never changed after it was made.

    Args:
        host: the framework.
        spec: the family of the blocks.
        blocks: the blocks, in order.
        trimmed: whether the last block computes the prefix tokens only (``trim_last``).
    """

    def __init__(self, host: Host, spec: Spec, blocks: list[Any], trimmed: bool) -> None:
        self.host = host
        self.spec = spec
        #: path of the modules whose outputs are the keys
        self.key = tuple(spec.key.split(".")) if spec.key else ()
        self.forwards = _distinct(_forward(original_class(block)) for block in blocks)
        self.helpers = _helpers(host, blocks)
        self.children = _distinct(_child_names(host, block) for block in blocks)
        self.bypassed = tuple(_noted(host, blocks, path) for path in spec.bypasses)
        self.bypassed_biased = tuple(_noted(host, blocks, path) for path in spec.bypasses_biased)
        path = spec.trim.attention if trimmed and spec.trim is not None else None
        self.bypassed_trimmed = () if path is None else (_noted(host, blocks[-1:], path),)
        paths = (*spec.bypasses, *spec.bypasses_biased, spec.attention)
        attending = {part.partition(".")[0] for part in paths}
        #: classes of the children that must treat tokens one by one
        self.classes = {
            name: _distinct(type(host.child(block, name)) for block in blocks)
            for names in self.children
            for name in names
            if name not in attending and attending != {""}
        }
        #: the attention that the halves call as a module and give the bias to
        self.called = () if not spec.attention else (_noted(host, blocks, spec.attention),)

    def why_changed(self, block: Any, *, biased: bool, trimmed: bool = False) -> str | None:
        """What of ``block`` is no longer as it was when the model was patched; None if nothing is.

        Args:
            block: a block that is about to merge, or to attend to merged tokens.
            biased: whether its attention gets a bias.
            trimmed: whether it computes the prefix tokens only.
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
                reason = self._why_bypassed(module, forwards, children, helpers)
                if reason is not None:
                    return f"{'.'.join(path)} ({type(module).__name__}) {reason}"
        if trimmed:
            return spec.trim.refuse(attribute(block, spec.trim.attention))  # type: ignore[union-attr]
        if spec.bypasses:
            return spec.refuse(block)
        return None

    def _why_bypassed(
        self, module: Any, forwards: Known, children: Known, helpers: dict[str, Known]
    ) -> str | None:
        """Why ``module``, whose forward the halves bypass, is no longer the one they stand for."""
        if not _among(_forward(type(module)), forwards):
            return (
                "was replaced after apply_patch, or its class got another forward, which the merging forward "
                "does not call"
            )
        if "forward" in module.__dict__ and has_own_forward(module):
            return "has a forward of its own, which the merging forward does not call"
        if not _same_children(self.host, module, children):
            return "got or lost children after apply_patch, and the merging forward calls those it knows"
        for name, functions in helpers.items():
            if name in module.__dict__ or not _among(getattr(type(module), name, None), functions):
                return f"has another {name}(), which the merging forward does not call"
        if self.spec.hooked(self.host, module):
            return (
                "has a forward hook, which the merging forward does not call; remove the hook, or hook the "
                "modules inside it"
            )
        return None

    def unknown_children(self, block: Any) -> list[tuple[str, Any]]:
        """Children that must treat tokens one by one, and are of another class than at ``apply_patch``."""
        child, found = self.host.child, []
        for name, known in self.classes.items():
            module = child(block, name)
            if type(module) not in known:
                found.append((name, module))
        return found

    def called_otherwise(self, block: Any) -> str | None:
        """Path of the attention that gets the bias, if by now it runs another forward than it did."""
        for path, forwards, *_ in self.called:
            for module in self.modules_at(block, path) or ():
                own = "forward" in module.__dict__ and has_own_forward(module)
                if own or not _among(_forward(type(module)), forwards):
                    return ".".join(path)
        return None

    def modules_at(self, block: Any, path: tuple[str, ...]) -> list[Any] | None:
        """The modules at a path below ``block``, ``*`` being every child; None if it ends before."""
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
        """Not pickled: a loaded model is looked at anew (``Config.contract``)."""
        return type(None), ()


def _noted(host: Host, blocks: list[Any], path: str) -> Noted:
    """What is known of the modules at ``path`` below ``blocks``."""
    modules = [module for block in blocks for module in attributes(block, path)]
    forwards = _distinct(
        _forward(original_class(module))
        for module in modules
        if replaced_forward(original_class(module)) is None
    )
    children = _distinct(_child_names(host, module) for module in modules)
    return tuple(path.split(".")), forwards, children, _helpers(host, modules)


def _helpers(host: Host, modules: list[Any]) -> dict[str, Known]:
    """Methods that the forwards of ``modules`` may call, by name: the functions they are."""
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
