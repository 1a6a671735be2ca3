"""Does a spec do what a block does? Asked of the block itself, with numbers.

For blocks that nobody at tomecore has read: before one is merged in, its two halves must reproduce its
forward, its attention must treat the bias as an addition to the scores, and its keys must come out where
the spec says. Everything runs on a copy of the block, in float64.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tomecore.adapters._host import Host
from tomecore.adapters._spec import Spec, attributes
from tomecore.adapters._swap import unswap
from tomecore.backends import Array

__all__ = ["why_not"]

#: far above rounding in float64, far below what a dropped norm or scale changes
TOLERANCE = 1e-9
TOKENS = 13


def why_not(host: Host, spec: Spec, block: Any, width: int) -> str | None:
    """The reason why ``spec`` does not describe ``block``, whose tokens are ``width`` wide; or None."""
    try:
        block = host.double(copy.deepcopy(block))
        for _, module in host.named_modules(block):
            unswap(module)
        with host.seeded(0):
            return _tried(host, spec, block, width)
    except Exception as error:  # whatever a stranger's block may raise
        return f"trying it on a copy failed with {type(error).__name__}: {error}"


def _tried(host: Host, spec: Spec, block: Any, width: int) -> str | None:
    xp = host.backend().xp
    values = np.random.default_rng(0).standard_normal((2, TOKENS, width))
    x = xp.asarray(values, device=host.device(block))
    taps: list[tuple[Any, Array]] = []
    handles = [host.tap(module) for module in attributes(block, spec.key)]
    for start in (block.train, block.eval):
        start()
        with host.seeded(1):
            whole = host.numbers(block(x))
        host.taps.set(taps, False)
        with host.seeded(1):
            y = spec.attend(host, block, x, None, {})
            host.taps.set(None, False)
            halves = host.numbers(y if spec.feed is None else spec.feed(block, y))
        if halves.shape != whole.shape or not _close(halves, whole):
            return "its two halves do not reproduce its forward"
    for handle in handles:
        handle.remove()
    if len(taps) != 2 * len(handles) or any(key.shape[-2] != TOKENS for _, key in taps):
        return f"{spec.key} does not give the keys, (B, H, N, D), once in each forward"
    return _bias_reason(host, spec, block, x)


def _bias_reason(host: Host, spec: Spec, block: Any, x: Array) -> str | None:
    """A token of size 2 must count as that token twice, and one of size 0 as none."""
    xp, n = host.backend().xp, TOKENS - 1
    ones = xp.ones_like(x[:, :, 0])
    for factor, other in ((2, xp.concat([x, x[:, n:]], axis=1)), (0, x[:, :n])):
        sizes = xp.concat([ones[:, :n], factor * ones[:, n:]], axis=1)
        got = spec.attend(host, block, x, host.formed(host.log_sizes(sizes, x), x), {})
        want = spec.attend(host, block, other, None, {})
        if not _close(host.numbers(got)[:, :n], host.numbers(want)[:, :n]):
            return (
                "its attention does not add the mask it is given to the scores of all tokens alike"
            )
    return None


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.isfinite(a).all() and np.abs(a - b).max() <= TOLERANCE * np.abs(b).max())
