"""Find the one vision tower of a model, and refuse what merging would break, with the reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tomecore.adapters._host import Host
from tomecore.adapters._spec import Spec, matches, qualified_name
from tomecore.adapters._swap import original_class
from tomecore.errors import UnsupportedModelError

__all__ = ["attribute", "find_tower"]


def find_tower(host: Host, specs: tuple[Spec, ...], model: Any) -> tuple[Spec, Any, list[Any]]:
    """Return the family, the module that owns the blocks, and the blocks in order.

    Raises:
        UnsupportedModelError: no tower, more than one, or one with something no spec accounts for.
    """
    towers = {
        path or "model": (module, spec)
        for path, module in host.named_modules(model)
        for spec in specs
        if spec.is_tower(module)
    }
    if not towers:
        raise UnsupportedModelError(_nothing_found(host, specs, model))
    if len(towers) > 1:
        raise UnsupportedModelError(
            f"`model` holds {len(towers)} vision transformers ({', '.join(towers)}), and one r cannot "
            "mean all of them; call apply_patch on each by itself"
        )
    ((path, (tower, spec)),) = towers.items()
    blocks = list(getattr(tower, spec.layers))
    for index, block in enumerate(blocks):
        _check_block(host, spec, block, f"{path}.{spec.layers}[{index}]")
    if not blocks:
        raise UnsupportedModelError(f"{path}.{spec.layers} is empty: there is no block to merge in")
    return spec, tower, blocks


def attribute(module: Any, path: str) -> Any:
    """The attribute at a dotted path."""
    for name in filter(None, path.split(".")):
        module = getattr(module, name)
    return module


def _check_block(host: Host, spec: Spec, block: Any, where: str) -> None:
    cls = original_class(block)
    for path in ("", *spec.bypasses):
        if "forward" in vars(attribute(block, path)):
            raise UnsupportedModelError(
                f"{where}{path and '.'}{path} has a forward of its own instance, which merging would "
                "bypass or be bypassed by (a wrapper such as accelerate's hooks, a monkeypatch, "
                "to_static); remove it, or patch first"
            )
    if not spec.is_block(block):
        raise UnsupportedModelError(
            f"{where} is a {qualified_name(cls)}, whose forward is not one that tomecore knows for "
            f"{spec.family} (known: {', '.join(spec.blocks)})"
        )
    for name, child in host.named_children(block):
        allowed = spec.children.get(name)
        if allowed is None:
            raise UnsupportedModelError(
                f"{where} has a child {name!r} ({qualified_name(type(child))}) that tomecore does not "
                f"know for {spec.family}; merging could drop what it does"
            )
        kind = original_class(child)
        if not matches(kind, allowed):
            raise UnsupportedModelError(
                f"{where}.{name} is a {qualified_name(kind)}; tomecore knows {', '.join(allowed)} "
                f"there for {spec.family}, and merging could break what another class does"
            )
    tensors = host.own_tensors(block)
    if tensors:
        raise UnsupportedModelError(
            f"{where} has parameters or buffers of its own ({', '.join(tensors)}) that tomecore does "
            f"not know for {spec.family}; merging could drop what they do"
        )
    if spec.key and not isinstance(attribute(block, spec.key), host.module_class):
        raise UnsupportedModelError(
            f"{where}.{spec.key} is no module, and tomecore takes the keys from its output"
        )
    for path in spec.bypasses:
        if host.hooked(attribute(block, path)):
            raise UnsupportedModelError(
                f"{where}.{path} has forward hooks, which the merging forward of {spec.family} would "
                "not call; remove them, or hook the modules inside it"
            )
    reason = spec.refuse(block)
    if reason:
        raise UnsupportedModelError(f"{where}: {reason}")


def _nothing_found(host: Host, specs: tuple[Spec, ...], model: Any) -> str:
    modules = [module for _, module in host.named_modules(model)]
    repeated = Counter(
        qualified_name(original_class(m)) for m in modules if len(list(host.named_children(m))) > 1
    ).most_common(1)
    blocks = f", built from {repeated[0][1]} x {repeated[0][0]}" if repeated else ""
    windowed = next((m for m in modules if getattr(m, "window_size", None) is not None), None)
    found = f"`model` ({qualified_name(original_class(model))}{blocks})"
    known = ", ".join(sorted({spec.family for spec in specs}))
    if windowed is not None:
        return (
            f"{found} has a window_size ({qualified_name(original_class(windowed))}): it attends in "
            "windows, or adds biases by position, and merging would break either, because the grid "
            f"must stay whole. Supported: {known}."
        )
    return (
        f"{found} holds no vision transformer that tomecore knows, so there is nothing to merge. "
        f"Supported: {known}. See CONTRIBUTING.md for adding a family."
    )
