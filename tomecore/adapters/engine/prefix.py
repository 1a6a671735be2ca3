"""Check for unknown tokens in front of the patches, which would merge unnoticed."""

from __future__ import annotations

import math
import types
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.count import modules_around
from tomecore.adapters.engine.spec import attribute, reaches
from tomecore.adapters.engine.state import PassSettings, unlink_schedule
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.engine.trim import known_base
from tomecore.backends import Array, Tokens
from tomecore.errors import ArgumentValueError, UnsupportedModelError

__all__ = ["check_prefix", "note_embedding", "patch_embedding"]


#: prefixes of the names of methods that are not part of a forward pass
_UNRELATED = ("__", "init", "_init", "load", "_load", "reset", "_reset", "set_", "no_weight_decay")


def note_embedding(config: Config, output: Array) -> None:
    """Record the output shape of the tower's patch embedding; its forward hook calls this."""
    if config.host.symbolic(output):
        return
    if isinstance(output, (tuple, list)):  # not tuple | list: Dynamo of torch 2.8 cannot trace it
        output = output[0]
    if not hasattr(output, "shape"):
        return
    tracing, shape = config.host.tracing(), tuple(output.shape)
    before = config.passes.patches.get(tracing) or ()
    if config.passes.call.get(tracing) is None:  # called by hand, perhaps not for a forward pass
        before = ()
    config.passes.patches.set((*before, shape), tracing)


def check_prefix(
    config: Config,
    shapes: tuple[tuple[int, ...], ...] | None,
    x: Tokens,
    tokens: int,
    start: PassSettings,
) -> None:
    """Raise if tokens in front of the patches are unknown, and would merge.

    Args:
        config: the config of the model.
        shapes: shapes of the outputs of the patch embedding in this pass; None if it did not run.
        x: the input of the first block.
        tokens: the number of tokens in ``x``.
        start: how the pass begins.

    Raises:
        UnsupportedModelError: there are more tokens than patches and protected tokens, or how many stand in
            front of the patches is unknown.
        ArgumentValueError: ``protected`` is larger than the number of tokens.
    """
    if not any(unlink_schedule(start.step)):
        return
    if config.announced is not None and config.announced > tokens:
        raise ArgumentValueError(
            f"`protected` is {config.announced}, but the first block got only {tokens} tokens; pass the "
            "number of tokens in front of the patches, or 'auto'"
        )
    found = [_patches(shape, int(x.shape[2])) for shape in shapes or ()]
    same = bool(shapes) and shapes[-1][0] == x.shape[1 - config.token_axis]  # type: ignore[index]
    patches = sum(found) if same and None not in found else None  # type: ignore[arg-type]
    if patches is not None and tokens - patches > config.protected:
        given = "" if config.announced is None else f" (protected={config.announced})"
        raise UnsupportedModelError(
            f"the first block got {tokens} tokens: {patches} patches and {tokens - patches} others. Only "
            f"{config.protected} of these are known as prefix tokens{given}; the rest would merge with "
            f"patches. Call apply_patch(model, protected={tokens - patches}) if they stand in front of the "
            "patches (prompts, registers, more class tokens), or set model.r = 0."
        )
    exact = patches is not None and tokens - patches == config.protected and len(found) == 1
    if config.announced is None and not exact and config.spec.patches:
        check_tokens_made(config, tokens)


def check_tokens_made(config: Config, tokens: int) -> None:
    """Raise if the tower computes its tokens differently from its family.

    Called if the number of patches does not determine how many tokens precede them: the embedding did not
    run or ran more than once, or patches were dropped.
    """
    reason = None
    replaced = _replaced_method(config)
    if replaced is not None:
        reason = f"the tower has another {replaced}() than its family"
    elif config.passes.call.get(config.host.tracing()) is not None and _replaced_embedding(config):
        reason = f"its patch embedding ({config.spec.patches}) was replaced"
    if reason is None:
        return
    raise UnsupportedModelError(
        f"{reason}, so it is unknown how many of the {tokens} tokens stand in front of the patches. Call "
        "apply_patch(model, protected=N) with their number (class, distillation and register tokens, "
        "prompts), or set model.r = 0."
    )


def patch_embedding(config: Config) -> Any:
    """Return the patch embedding, in the tower or in a module around it; None if there is none."""
    path = config.spec.patches
    if not path or config.root is None or config.tower is None:
        return None
    for module in modules_around(config.host, config.tower, config.root):
        if reaches(module, path):
            found = attribute(module, path)
            return found if isinstance(found, config.host.module_class) else None
    return None


def _replaced_embedding(config: Config) -> bool:
    """Whether the patch embedding is not the module that tomecore's hook is registered on."""
    found = patch_embedding(config)
    if found is not None:
        return not config.host.is_listened_to(found, config)
    first, dot, _ = config.spec.patches.partition(".")
    modules = () if config.root is None else modules_around(config.host, config.tower, config.root)
    return bool(dot) and any(reaches(module, first) for module in modules)


def _replaced_method(config: Config) -> str | None:
    """Return the name of a method of the family that a subclass or this tower overrides; else None."""
    tower = config.tower
    cls = None if tower is None else known_base(tower, tuple(config.spec.towers))
    if cls is None:
        return None
    names: dict[str, Any] = vars(tower)
    for name, value in names.items():
        if isinstance(value, (types.FunctionType, types.MethodType)) and hasattr(cls, name):
            return name
    if config.passes.call.get(config.host.tracing()) is None:  # blocks called by hand
        return None
    found = original_class(tower).__mro__
    for between in found[: found.index(cls)]:
        for name, value in vars(between).items():
            ours = isinstance(value, types.FunctionType) and not name.startswith(_UNRELATED)
            if ours and hasattr(cls, name) and not hasattr(config.host.module_class, name):
                return name
    return None


def _patches(shape: tuple[int, ...], width: int) -> int | None:
    """Return the number of patches in an embedding of this shape and ``width``; None if it is unclear."""
    if len(shape) > 2 and shape[-1] == width:
        return math.prod(shape[1:-1])
    if len(shape) > 3 and shape[1] == width:
        return math.prod(shape[2:])
    return None
