"""Tokens in front of the patches: those that nobody announced must not merge in silence."""

from __future__ import annotations

import math
import types

from tomecore.adapters._config import Config
from tomecore.adapters._state import Start, amounts
from tomecore.adapters._swap import original_class
from tomecore.adapters._trim import known
from tomecore.backends import Array
from tomecore.errors import ArgumentValueError, UnsupportedModelError

__all__ = ["check_prefix", "embedded"]


#: starts of names of methods that do not take part in a forward pass
_UNRELATED = ("__", "init", "_init", "load", "_load", "reset", "_reset", "set_", "no_weight_decay")


def embedded(config: Config, output: Array) -> None:
    """The patch embedding of the tower has run."""
    if isinstance(output, tuple | list):  # the size of the grid may come with it
        output = output[0]
    if not hasattr(output, "shape"):
        return
    tracing, shape = config.host.tracing(), tuple(output.shape)
    before = config.passes.patches.get(tracing) or ()
    if config.passes.call.get(tracing) is None:  # called by hand, for who knows what
        before = ()
    config.passes.patches.set((*before, shape), tracing)


def check_prefix(
    config: Config, shapes: tuple[tuple[int, ...], ...] | None, x: Array, tokens: int, start: Start
) -> None:
    """Raise if there are tokens in front of the patches that nobody announced.

    Args:
        config: of the model.
        shapes: of what the patch embedding computed for this pass; None if it did not run.
        x: what enters the first block,
        tokens: how many tokens that is,
        start: and how the pass begins.

    Raises:
        UnsupportedModelError: more tokens than patches and protected tokens.
        ArgumentValueError: ``protected`` is more than there are tokens.
    """
    if not any(amounts(start.step)):
        return
    if config.announced is not None and config.announced > tokens:
        raise ArgumentValueError(
            f"`protected` is {config.announced}, and the first block got {tokens} tokens; give the number of "
            "tokens in front of the patches, or 'auto'"
        )
    if not shapes:
        if config.announced is None and config.spec.patches:
            check_tokens_made(config, tokens)
        return
    found = [_patches(shape, int(x.shape[2])) for shape in shapes]
    if None in found or shapes[-1][0] != x.shape[1 - config.token_axis]:
        return
    patches = sum(found)  # type: ignore[arg-type]
    if tokens - patches <= config.protected:
        return
    given = "" if config.announced is None else f" (protected={config.announced})"
    raise UnsupportedModelError(
        f"the first block got {tokens} tokens, of which {patches} are patches, so {tokens - patches} others "
        f"are there; {config.protected} are known not to merge{given}, and the others would merge with "
        "patches. "
        f"Call apply_patch(model, protected={tokens - patches}) if they stand in front (prompts, registers, "
        "more class tokens), or set model.r = 0."
    )


def check_tokens_made(config: Config, tokens: int) -> None:
    """Raise if the tower computes its tokens otherwise than its family does, by methods of its own."""
    replaced = _replaced_method(config)
    if replaced is None:
        return
    raise UnsupportedModelError(
        f"the patch embedding of {config.spec.family} ({config.spec.patches}) did not run, and the tower "
        f"has another {replaced}() than its family: how many of the {tokens} tokens stand in front of the "
        "patches is unknown. Call apply_patch(model, protected=N) with their number (class, distillation "
        "and register tokens, prompts), or set model.r = 0."
    )


def _replaced_method(config: Config) -> str | None:
    """A method of the tower's family that its subclass or this very tower has in another form."""
    tower = config.tower
    cls = None if tower is None else known(tower, tuple(config.spec.towers))
    if cls is None:
        return None
    for name, value in vars(tower).items():
        if isinstance(value, types.FunctionType | types.MethodType) and hasattr(cls, name):
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
    """Patches in an embedding of this shape, for tokens ``width`` wide; None if the shape does not say."""
    if len(shape) > 2 and shape[-1] == width:
        return math.prod(shape[1:-1])
    if len(shape) > 3 and shape[1] == width:
        return math.prod(shape[2:])
    return None
