"""Find the vision tower of a model; raise, with the reason, if merging would break it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from tomecore._project import page
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import (
    Spec,
    attributes,
    defines_forward,
    has_own_forward,
    helper_methods,
    matches,
    qualified_name,
    reaches,
    replaced_forward,
)
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.engine.verify import why_not
from tomecore.errors import UnsupportedModelError

__all__ = ["check_block", "find_tower"]


def find_tower(host: Host, specs: tuple[Spec, ...], model: Any) -> tuple[Spec, Any, list[Any]]:
    """Return the family, the module that owns the blocks, and the blocks in order.

    Raises:
        UnsupportedModelError: there is no tower or more than one, or its blocks hold something unknown.
    """
    specs = (*host.registered, *specs)
    modules = [(path or "model", module) for path, module in host.named_modules(model)]
    towers = {path: m for path, m in modules if any(spec.is_tower(m) for spec in specs)}
    if not towers and host.fallback is not None:
        towers = {path: m for path, m in modules if _resembles(host.fallback, m)}
    if not towers:
        raise UnsupportedModelError(_describe_unknown(host, specs, model))
    if len(towers) > 1:
        raise UnsupportedModelError(
            f"`model` holds {len(towers)} vision transformers ({', '.join(towers)}), and one r cannot set "
            "all of them; call apply_patch on each one separately"
        )
    ((path, tower),) = towers.items()
    candidates = [spec for spec in specs if spec.is_tower(tower)]
    for spec in candidates:
        blocks = spec.block_list(tower)
        if blocks and spec.is_block(blocks[0]) and reaches(blocks[0], spec.key):
            break
    else:
        if host.fallback is not None and _resembles(host.fallback, tower):
            return host.fallback, tower, _try_blocks(host, host.fallback, candidates, path, tower)
        spec = candidates[0]
        blocks = spec.block_list(tower)
    where = f"{path}.{spec.layers(tower)}"
    if not blocks:
        raise UnsupportedModelError(f"{where} is empty: there is no block to merge in")
    _check_distinct(where, blocks)
    for index, block in enumerate(blocks):
        _check_forward(host, spec, candidates, block, f"{where}[{index}]")
        check_block(host, spec, block, f"{where}[{index}]")
    return spec, tower, blocks


def _check_distinct(where: str, blocks: list[Any]) -> None:
    """Raise UnsupportedModelError if the list holds one block twice."""
    first: dict[int, int] = {}
    for index, block in enumerate(blocks):
        if first.setdefault(id(block), index) != index:
            raise UnsupportedModelError(
                f"{where}[{index}] is the same block object as {where}[{first[id(block)]}], but each layer "
                "merges its own tokens; put a copy there (copy.deepcopy)"
            )


def _resembles(spec: Spec, module: Any) -> bool:
    """Whether ``module`` looks like a tower of the fallback, so that its blocks are worth a trial."""
    blocks = getattr(module, spec.layers(module) or "", None)
    if not isinstance(getattr(module, "num_prefix_tokens", None), int) or blocks is None:
        return False
    needed = ("norm1", "attn", "norm2", "mlp")
    return (
        isinstance(blocks, Iterable)
        and bool(list(blocks))
        and all(
            all(getattr(block, name, None) is not None for name in needed)
            and getattr(block.attn, "k_norm", None) is not None
            for block in blocks
        )
    )


def _try_blocks(host: Host, spec: Spec, candidates: list[Spec], path: str, tower: Any) -> list[Any]:
    """Try the blocks of a tower that no spec knows, and return them.

    Raises:
        UnsupportedModelError: a block does not do what the fallback says.
    """
    blocks = spec.block_list(tower)
    _check_distinct(f"{path}.{spec.layers(tower)}", blocks)
    for index, block in enumerate(blocks):
        where = f"{path}.{spec.layers(tower)}[{index}]"
        _check_forward(host, spec, candidates, block, where)
        check_block(host, spec, block, where)
        width = int(next(iter(block.norm1.parameters())).shape[-1])
        reason = why_not(host, spec, block, width, spec.prefix(tower))
        if reason is not None:
            raise UnsupportedModelError(
                f"{where} is a {qualified_name(original_class(block))}, whose forward is not one that "
                f"tomecore knows. It is built like {spec.family}, but {reason}. To describe it yourself, see "
                f"{page('docs/how-to/your-own-blocks.md')}."
            )
    return blocks


def _check_forward(host: Host, spec: Spec, candidates: list[Spec], block: Any, where: str) -> None:
    """Raise UnsupportedModelError unless the halves of ``spec`` reproduce the forward of ``block``."""
    known = spec.is_block(block)
    replaced = _overriding_method(host, spec, block) if known else None
    if replaced is not None:
        raise UnsupportedModelError(
            f"{where}: {replaced} replaces a method of "
            f"{qualified_name(defines_forward(original_class(block)))}, which the merging forward does not "
            "call; use the class unchanged, or describe yours by register() (examples/custom_block.py)"
        )
    for path in ("", *spec.bypasses) if known else ():
        for module in attributes(block, path):
            other_forward = replaced_forward(original_class(module), spec.replacers)
            if other_forward is not None:
                raise UnsupportedModelError(
                    f"the forward of {where}{path and '.'}{path} ({original_class(module).__qualname__}) was "
                    f"replaced by {other_forward}, which the merging forward does not call; restore the "
                    "library's own, or describe yours by register() (examples/custom_block.py)"
                )
    for path in ("", *spec.bypasses) if known else ("",):
        if any(has_own_forward(module) for module in attributes(block, path)):
            raise UnsupportedModelError(
                f"{where}{path and '.'}{path} has a forward on the instance, which merging would bypass or "
                "be bypassed by (a wrapper such as accelerate's hooks, a monkeypatch, to_static); remove it, "
                "or call apply_patch first"
            )
    if not known:
        found = qualified_name(original_class(block))
        other = next((s for s in candidates if s.is_block(block)), None)
        if other is not None:
            raise UnsupportedModelError(
                f"{where} is a {found} among blocks of {spec.family}; tomecore merges only in towers whose "
                "blocks are all of one family"
            )
        names = ", ".join(name for candidate in candidates for name in candidate.blocks)
        raise UnsupportedModelError(
            f"{where} is a {found}, whose forward is not one that tomecore knows for "
            f"{spec.family} (known: {names})"
        )


def _overriding_method(host: Host, spec: Spec, block: Any) -> str | None:
    """Return the name of a helper method that a subclass or the instance overrides; else None."""
    cls = original_class(block)
    owner = defines_forward(cls)
    if cls is not owner and spec.blocks != ("*",):
        for name in helper_methods(cls, host.module_class):
            if getattr(cls, name) is not getattr(owner, name):
                return f"{cls.__qualname__}.{name}"
    for name in helper_methods(cls, host.module_class):
        if name in vars(block):
            return f"{name} of the instance"
    return None


def check_block(host: Host, spec: Spec, block: Any, where: str) -> None:
    """Raise UnsupportedModelError if ``block`` holds anything that the halves of ``spec`` do not know."""
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
    tensors = [name for name in host.own_tensors(block) if name not in spec.tensors]
    if tensors:
        raise UnsupportedModelError(
            f"{where} has parameters or buffers of its own ({', '.join(tensors)}) that tomecore does "
            f"not know for {spec.family}; merging could drop what they do"
        )
    keys = attributes(block, spec.key) if reaches(block, spec.key) else [None]
    if spec.key and not all(isinstance(module, host.module_class) for module in keys):
        raise UnsupportedModelError(
            f"{where}.{spec.key} is not a module, but tomecore takes the keys from its output"
        )
    for path in spec.bypasses:
        if any(spec.hooked(host, module) for module in attributes(block, path)):
            raise UnsupportedModelError(
                f"{where}.{path} has forward hooks, which the merging forward of {spec.family} would not "
                "call; remove them, or hook the modules inside it"
            )
    reason = spec.refuse(block)
    if reason:
        raise UnsupportedModelError(f"{where}: {reason}")


def _describe_unknown(host: Host, specs: tuple[Spec, ...], model: Any) -> str:
    modules = [module for _, module in host.named_modules(model)]
    repeated = Counter(
        qualified_name(original_class(m)) for m in modules if len(list(host.named_children(m))) > 1
    ).most_common(1)
    blocks = f", built from {repeated[0][1]} x {repeated[0][0]}" if repeated else ""
    windowed = next((m for m in modules if getattr(m, "window_size", None) is not None), None)
    found = f"`model` ({qualified_name(original_class(model))}{blocks})"
    known = (
        f"The supported models are listed in {page('docs/supported.md')}; to describe your own blocks, see "
        f"{page('docs/how-to/your-own-blocks.md')}."
    )
    for module in modules:
        for spec in specs:
            for name, reason in spec.refused.items():
                if matches(original_class(module), (name,)):
                    return f"{found} holds a {name}, in which merging is not supported: {reason}."
    if windowed is not None:
        return (
            f"{found} has a window_size ({qualified_name(original_class(windowed))}): it attends in windows "
            f"of its grid, and merging would break the grid. {known}"
        )
    return f"{found} holds no vision transformer that tomecore knows, so there is nothing to merge. {known}"
