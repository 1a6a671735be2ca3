"""Follow a forward pass from block to block: its start, each block, and its end at the last block."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

from tomecore.adapters.engine.checks import CHANGED_WAY_OUT, check_intact
from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.passes import TRACED, UNREACHED, Outcome
from tomecore.adapters.engine.prefix import check_prefix
from tomecore.adapters.engine.recompute import remember, restart
from tomecore.adapters.engine.schedules import start_of_pass, warn_of_clamping
from tomecore.adapters.engine.state import ForwardInfo, TokenState
from tomecore.backends import Tokens
from tomecore.errors import InnerHookWarning, LostStateError, UnsupportedModelError

__all__ = ["begin", "check_symbolic", "check_unreached", "note", "reach", "resume"]

_numbers = itertools.count(1)


def begin(config: Config, x: Tokens, tracing: bool, index: int = 0) -> TokenState | None:
    """Start a state at block ``index``, the first block that runs in this forward pass.

    Returns None for a block that was copied out of its model, if nothing merges.
    """
    if config.tower is None and config.merges_nothing():
        return None
    tokens = int(x.shape[config.token_axis])
    check_intact(config)
    call = config.passes.call.get(tracing)
    number = 0
    if tracing:
        start = start_of_pass(config, tokens, tracing)
    elif config.host.recomputing():
        start, number = restart(config, x, tokens, call), -1
    else:
        start, number = start_of_pass(config, tokens, tracing), next(_numbers)
        remember(config, x, tokens, start, call)
        warn_of_clamping(config, start.step, tokens)
        if start.keep_all and config.dense_by_user.on(False):
            warn_of_inner_hooks(config)
    shapes = config.passes.patches.get(tracing)
    config.passes.patches.set(None, tracing)
    if call is not None:
        shapes = call.shapes = shapes or call.shapes
    if number >= 0:  # a recomputed pass was checked the first time
        check_prefix(config, shapes, x, tokens, start)
    config.passes.open.set(False, tracing)
    info = ForwardInfo(
        num_tokens=tokens,
        batch=x.shape[1 - config.token_axis],
        device=None if tracing else config.host.backend().device(x),
        number=number,
        keep_all=start.keep_all,
    )
    state = TokenState(info, start.step, tokens)
    return state if index == 0 else state.at(index)


def resume(config: Config, x: Tokens, tracing: bool, index: int) -> TokenState | None:
    """Return the state that ``x`` belongs to; None if there is none and nothing merges.

    Raises:
        LostStateError: ``x`` has lost its run, or the block is called out of order.
    """
    state = config.host.read(config, x, tracing)
    axis = config.token_axis
    if state is not None and state.fits(x.shape[1 - axis], x.shape[axis], tracing):
        here = state if tracing else state.at(index)
        if here is not None or (state.history is None and config.merges_nothing()):
            return here
        raise LostStateError(
            f"{config.layers}[{index}] of {config.spec.family} was called after block {state.blocks - 1}: "
            "while tokens merge, blocks must run in the order of their list, each once. Set model.r = 0 for "
            "another order."
        )
    if not tracing and state is None and may_begin(config, index):
        return begin(config, x, tracing, index)
    nothing = (state is None or state.history is None) and config.merges_nothing()
    if nothing and not config.trim_last:
        return None
    way_out = "apply_patch(model) again without trim_last" if nothing else "set model.r = 0"
    raise LostStateError(
        f"a patched block of {config.spec.family} got tokens of shape {tuple(x.shape)} without their sizes. "
        "The sizes are attached to the tensor that the block before returned: pass that same tensor on (a "
        "copy, a slice, a cast, or a hook that returns a new tensor loses them), call the whole model "
        f"instead of single blocks, or {way_out}."
    )


def may_begin(config: Config, index: int) -> bool:
    """Whether a state may start at block ``index``: the blocks before it were skipped, or merged nothing."""
    call = config.passes.call.get(False)
    if call is None or config.host.recomputing():
        return False
    state = call.state
    return state is None or (
        state.history is None and state.valid is None and state.blocks <= index
    )


def reach(config: Config, tracing: bool) -> None:
    """Record that the patched forward of a block runs."""
    config.passes.reached.set(True, tracing)
    if tracing:
        config.passes.reached.mark(True)


def check_unreached(
    config: Config,
    block: Any,
    args: tuple[Any, ...],
    tracing: bool,
    cause: Exception | None = None,
) -> None:
    """Handle a block whose patched forward did not run when it was called; allowed if nothing merges.

    Raises:
        UnsupportedModelError: tokens would merge here, or have merged before; ``cause`` is the error that the
            block raised, if any.
    """
    merged, index = False, vars(block)["_tome_index"]
    if not tracing:
        for array in args:
            if isinstance(array, config.host.array_class):
                state = config.host.read(config, array, tracing)
                merged = merged or (state is not None and state.history is not None)
    may_merge = callable(config.r) or (
        any(config.schedule(None)) if tracing else config.schedule(None)[index] > 0
    )
    if merged or may_merge:
        raise UnsupportedModelError(
            f"{config.layers}[{index}] of {config.spec.family} has a forward of its own, which does not call "
            f"the one that merges. {CHANGED_WAY_OUT} A forward that calls the one it replaces works."
        ) from cause
    if not tracing:
        config.passes.outcome.set(UNREACHED, False)


def note(config: Config, state: TokenState, tracing: bool, last: bool) -> None:
    """Record ``state`` for ``model.tome``; a recomputation does not count as a forward pass."""
    if tracing:
        unfinished = (
            state.history is not None and not state.keep_all and config.restore and not last
        )
        config.passes.outcome.mark(TRACED)
        config.passes.open.set(unfinished, True)
        config.passes.open.mark(unfinished)
        if last:
            config.passes.closed.mark(True)
        return
    call = config.passes.call.get(False)
    if call is not None:
        call.state = state
        if not state.unfinished or state.info.number < 0:
            call.open.pop(id(state.info), None)
        else:
            call.open[id(state.info)] = state
        config.passes.open.set(False, False)
    outcome = config.passes.outcome.get(False)
    newest = None if outcome is None else outcome.state
    if newest is not None and newest.info is state.info and state.blocks >= newest.blocks:
        outcome.state = state  # type: ignore[union-attr]
    elif state.progress >= ((0, 0) if newest is None else newest.progress):
        config.passes.outcome.set(Outcome(state), False)


def check_symbolic(config: Config, x: Any) -> None:
    """Raise unless nothing merges; ``x`` is a tracer's proxy or a list of images, not an array."""
    if config.merges_nothing() and not config.trim_last:
        return
    if not config.host.symbolic(x):
        raise UnsupportedModelError(
            f"a patched block of {config.spec.family} got a {type(x).__name__} in place of tokens (B, N, C). "
            "Call the model with one batch at a time, or set model.r = 0."
        )
    raise UnsupportedModelError(
        "torch.fx cannot trace a block that merges tokens, because its graph has no token counts. Use "
        "torch.export or torch.compile, hooks on the blocks, or model.tome.all_tokens(). With model.r = 0 "
        "(without trim_last) torch.fx traces the model as if it were not patched."
    )


def warn_of_inner_hooks(config: Config) -> None:
    """Warn, once, about hooks inside blocks: even within ``all_tokens()`` they get merged tokens."""
    for index, block in enumerate(config.blocks):
        for path, module in config.host.named_modules(block):
            if path and config.host.hooked_by_user(module):
                warnings.warn(
                    f"{config.layers}[{index}].{path} has a hook. Within all_tokens() the blocks return all "
                    "tokens, but modules inside a block still get the merged ones. Hook the block itself, or "
                    "set model.r = 0 for this pass.",
                    InnerHookWarning,
                    stacklevel=2,
                )
                return
