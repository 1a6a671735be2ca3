"""What a recomputation in a backward pass needs: how the forward pass began that it repeats.

``r`` may have changed since, and other passes may have come between. So each pass notes how it began on the
tensors it began from, which a checkpoint hands to the recomputation.
"""

from __future__ import annotations

from tomecore.adapters._config import Config
from tomecore.adapters._passes import AMBIGUOUS, MIXED, Call, Outstanding
from tomecore.adapters._state import Start
from tomecore.backends import Array
from tomecore.errors import LostStateError

__all__ = ["remember", "restart"]

#: numbers of tokens of which the last beginning is kept
_MOST_LENGTHS = 64


def remember(config: Config, x: Array, tokens: int, start: Start, call: Call | None) -> None:
    """Note how a forward pass begins, for its recomputation.

    On the tensor that enters the first block; and where a checkpointed region may begin before that, on
    the arrays that entered the call of the model, and here.
    """
    host = config.host
    config.passes.begun[tokens] = start
    if len(config.passes.begun) > _MOST_LENGTHS:
        config.passes.begun.clear()
    kept = host.kept(config, x, "_tome_start")
    same = kept is None or (kept is not MIXED and kept.same(start))
    host.keep(config, x, "_tome_start", start if same else MIXED)
    if not host.in_checkpoint():
        return
    config.passes.outstanding.add(tokens, start)
    for array in () if call is None else call.arrays(host.array_class):
        noted = host.kept(config, array, "_tome_passes") or Outstanding()
        noted.add(tokens, start)
        host.keep(config, array, "_tome_passes", noted)


def restart(config: Config, x: Array, tokens: int, call: Call | None) -> Start:
    """How the forward pass began that is recomputed now, from what its own tensors kept.

    Raises:
        LostStateError: passes that began otherwise may be meant as well.
    """
    host = config.host
    kept: Start | None = host.kept(config, x, "_tome_start")
    if kept is MIXED:
        raise LostStateError(AMBIGUOUS.format(what="tensor"))
    start = kept
    for array in () if call is None else call.arrays(host.array_class):
        noted = host.kept(config, array, "_tome_passes")
        if noted is None:
            continue
        if kept is None:
            start = noted.take(tokens, "images")
        else:
            noted.discharge(tokens, kept)
    if start is not None:
        config.passes.outstanding.discharge(tokens, start)
        return start
    start = config.passes.outstanding.take(tokens, "model")
    if start is not None:
        return start
    start, begun = config.start(tokens, False), config.passes.begun.get(tokens)
    if begun is not None and not begun.same(start):
        raise LostStateError(
            "r was changed between a forward pass and its backward pass, and the checkpointed "
            "region begins before the first block, so the old r is not known there. Change r "
            "after backward(), or checkpoint the blocks only."
        )
    return start
