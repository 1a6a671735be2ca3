"""Find, for a recomputation in backward, how the forward pass began that it repeats.

``r`` may have changed since then, and other passes may have run in between. So each pass records its start on
its input tensors, which a checkpoint passes to the recomputation.
"""

from __future__ import annotations

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.passes import Call, Outstanding
from tomecore.adapters.engine.schedules import start_of_pass
from tomecore.adapters.engine.state import PassSettings
from tomecore.backends import Tokens
from tomecore.errors import LostStateError

__all__ = ["remember", "restart"]

#: for how many different numbers of tokens the last start is kept
_MOST_LENGTHS = 64


def remember(
    config: Config, x: Tokens, tokens: int, start: PassSettings, call: Call | None
) -> None:
    """Record how a forward pass in a checkpointed region begins, for its recomputation.

    It is recorded on the tensor that enters the first block. If the region may begin before that, it is
    recorded on the array arguments of the model's call, and in ``config.passes``, too.
    """
    host, passes = config.host, config.passes
    if len(passes.begun) > _MOST_LENGTHS:
        passes.begun.clear()
    passes.begun[tokens] = start
    if not host.in_checkpoint():
        return
    passes.outstanding.add(tokens, start)
    for array in (x, *(() if call is None else call.arrays(host.array_class))):
        noted = host.recall(config, array, "_tome_passes") or Outstanding()
        noted.add(tokens, start)
        host.keep(config, array, "_tome_passes", noted)


def restart(config: Config, x: Tokens, tokens: int, call: Call | None) -> PassSettings:
    """Return how the forward pass began that is recomputed now, as recorded on its tensors.

    Raises:
        LostStateError: it is unknown, or passes with several different starts are possible.
    """
    host, passes = config.host, config.passes
    start: PassSettings | None = None
    for array in (x, *(() if call is None else call.arrays(host.array_class))):
        noted = host.recall(config, array, "_tome_passes")
        if noted is None:
            continue
        if start is None:
            start = noted.take(tokens, "tensor")
        else:
            noted.discharge(tokens, start)
    if start is not None:
        passes.outstanding.discharge(tokens, start)
        return start
    start = passes.outstanding.take(tokens, "model")
    if start is not None:
        return start
    now, begun = start_of_pass(config, tokens, False), passes.begun.get(tokens)
    if begun is None:
        raise LostStateError(
            f"backward recomputes a forward pass of {tokens} tokens from before the model was patched, or "
            "patched again, so its settings are no longer known. Call apply_patch before the forward pass, "
            "or after backward()."
        )
    if not begun.same(now):
        raise LostStateError(
            "r was changed between a forward pass and its backward pass, and the checkpointed region begins "
            "before the first block, so the old r is not known there. Change r after backward(), or "
            "checkpoint only the blocks."
        )
    return now
