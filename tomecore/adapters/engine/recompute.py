"""What a recomputation in a backward pass needs: how the forward pass began that it repeats.

``r`` may have changed since, and other passes may have come between. So each pass notes how it began on the
tensors it began from, which a checkpoint hands to the recomputation.
"""

from __future__ import annotations

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.passes import Call, Outstanding
from tomecore.adapters.engine.schedules import start_of_pass
from tomecore.adapters.engine.state import Start
from tomecore.backends import Array
from tomecore.errors import LostStateError

__all__ = ["remember", "restart"]

#: numbers of tokens of which the last beginning is kept
_MOST_LENGTHS = 64


def remember(config: Config, x: Array, tokens: int, start: Start, call: Call | None) -> None:
    """Note how a forward pass in a checkpointed region begins, for its recomputation.

    On the tensor that enters the first block; and where the region may begin before that, on the arrays that
    entered the call of the model, and here.
    """
    host, passes = config.host, config.passes
    if len(passes.begun) > _MOST_LENGTHS:
        passes.begun.clear()
    passes.begun[tokens] = start
    if not host.in_checkpoint():
        return
    passes.outstanding.add(tokens, start)
    for array in (x, *(() if call is None else call.arrays(host.array_class))):
        noted = host.kept(config, array, "_tome_passes") or Outstanding()
        noted.add(tokens, start)
        host.keep(config, array, "_tome_passes", noted)


def restart(config: Config, x: Array, tokens: int, call: Call | None) -> Start:
    """How the forward pass began that is recomputed now, from what its own tensors kept.

    Raises:
        LostStateError: passes that began otherwise may be meant as well, or none is known.
    """
    host, passes = config.host, config.passes
    start: Start | None = None
    for array in (x, *(() if call is None else call.arrays(host.array_class))):
        noted = host.kept(config, array, "_tome_passes")
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
            f"a forward pass of {tokens} tokens is recomputed that was made before the model was patched, or "
            "patched again: how it began is not known any more. Patch before the forward pass, or after "
            "backward()."
        )
    if not begun.same(now):
        raise LostStateError(
            "r was changed between a forward pass and its backward pass, and the checkpointed "
            "region begins before the first block, so the old r is not known there. Change r "
            "after backward(), or checkpoint the blocks only."
        )
    return now
