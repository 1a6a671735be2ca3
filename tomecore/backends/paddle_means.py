"""Weighted means of merged tokens in Paddle, for static graphs and for devices other than a CPU.

They are the means of ``core/mean.py`` to rounding. Static graphs convert the source of these functions.
"""

from __future__ import annotations

from math import inf
from typing import Any

import paddle
from paddle import float32, float64

from tomecore.backends import Array, Sizes, Tokens
from tomecore.backends.paddle_products import sums_of_equals

__all__ = ["by_groups", "by_slots"]


def by_slots(backend: Any, plan: Any, x: Tokens, size: Sizes | None) -> tuple[Tokens, Sizes]:
    """Add every token to its slot, times its share of the size of the slot.

    These are two scatters for the whole merge, so a static graph has few operations. Two tokens are added in
    any order; of three or more, the rounding depends on it if a device adds in no fixed order.

    Args:
        backend: of Paddle.
        plan: a :class:`tomecore.MergePlan`.
        x: (B, N, C).
        size: (B, N) float32, or None: one each.

    Returns:
        (B, n, C) in the dtype of ``x``, and the new sizes (B, n) float32.
    """
    tokens, slots, width, dtype = plan.num_tokens, plan.num_slots, x.shape[2], x.dtype
    wide = float64 if dtype == float64 else float32
    if size is None:
        size = paddle.ones_like(x[:, :, 0], dtype="float32")
    rows = backend.flat_rows(plan.slots, slots)
    flat = paddle.reshape(size, [-1])
    # Every slot holds a token, so nothing of the first argument is left; it only has the shape.
    sizes = _add(paddle.reshape(size[:, :slots], [-1]), rows, flat)
    total = paddle.gather(sizes, rows)
    share = paddle.reshape(flat.astype(wide) / total.astype(wide), [-1, tokens, 1])
    x = x.astype(wide)
    parts = paddle.reshape(x * share, [-1, width])
    out = _add(paddle.reshape(x[:, :slots], [-1, width]), rows, parts)
    sizes = paddle.reshape(sizes, [-1, slots])
    return paddle.reshape(out, [-1, slots, width]).astype(dtype), sizes


def _add(like: Array, rows: Array, updates: Array) -> Array:
    """Return the sums of ``updates`` in their ``rows``, which are all rows of ``like``."""
    return paddle.scatter(like, rows, updates, overwrite=False)


def by_groups(
    backend: Any, plan: Any, x: Tokens, size: Sizes | None
) -> tuple[Tokens, Sizes] | None:
    """Write the mean of each group of merged tokens to one row; no two writes go to the same row.

    Nothing is added atomically, so the bits are the same each time, and ``FLAGS_cudnn_deterministic`` has no
    effect. Tokens that do not merge keep their dtype. The steps of tokens with the same slot are added by a
    product with (r, r) zeros and ones. The first of them writes; each other one writes to a spare row, which
    is its own, after all slots.

    Returns:
        What :func:`by_slots` returns; None if r is above C, because the (r, r) products would then be larger
        than the tokens that merge.
    """
    tokens, slots, merged, width = plan.num_tokens, plan.num_slots, plan.num_merged, x.shape[2]
    if merged > width:
        return None
    wide = float64 if x.dtype == float64 else float32
    into = plan.into
    equal = (into.unsqueeze(2) == into.unsqueeze(1)).astype(float32)
    own = backend.xp.arange(0, merged, 1, into.dtype, backend.device(into))
    first = paddle.reshape(paddle.argmax(equal, axis=2).astype(into.dtype) == own, [-1])
    kept, spare = _spare_rows(backend, into, slots, tokens)
    target = backend.flat_rows(into, slots)
    rows = paddle.where(first, target, spare)
    kept_rows = backend.flat_rows(plan.kept, tokens)
    taken = paddle.concat([kept_rows, backend.flat_rows(plan.merged, tokens)])
    if size is None:
        held = paddle.ones_like(taken, dtype="float32")
    else:
        held = paddle.gather(paddle.reshape(size, [-1]), taken)
    base = paddle.gather(paddle.reshape(x, [-1, width]), taken)
    weight = paddle.reshape(held[kept:], [-1, merged])
    group = paddle.sum(equal * weight.unsqueeze(1), axis=2)
    total = paddle.reshape(paddle.gather(held, target), [-1, merged]) + group
    share = paddle.reshape(weight.astype(wide) / total.astype(wide), [-1, 1])
    start, gone = paddle.gather(base, target).astype(wide), base[kept:].astype(wide)
    # From finite numbers, because zero times infinity is NaN; a quarter, so that no part of a sum overflows.
    finite = paddle.isfinite(gone)
    zeros = paddle.zeros_like(start)
    step = 0.25 * paddle.where(paddle.isfinite(start), start, zeros)
    step = paddle.where(finite, (0.25 * gone - step) * share, zeros)
    half = 2.0 * _sums(equal, step, wide, merged, width)
    mean = start + half + half
    # Infinity is added afterwards. NaN is the sum of both infinities.
    not_finite = paddle.logical_not(finite)
    up = paddle.logical_and(not_finite, paddle.logical_not(gone < 0)).astype(wide)
    down = paddle.logical_and(not_finite, paddle.logical_not(gone > 0)).astype(wide)
    mean = mean + paddle.where(_sums(equal, up, wide, merged, width) > 0, zeros + inf, zeros)
    mean = mean + paddle.where(_sums(equal, down, wide, merged, width) > 0, zeros - inf, zeros)
    out = _write(base, rows, mean.astype(x.dtype))
    sizes = _write(held, rows, paddle.reshape(total, [-1]))
    return paddle.reshape(out[:kept], [-1, slots, width]), paddle.reshape(sizes[:kept], [-1, slots])


def _sums(equal: Array, x: Array, wide: Any, merged: int, width: int) -> Array:
    """Return (B * r, C), for each merged token the sum of ``x`` (B * r, C) over those of its slot."""
    x = paddle.reshape(x, [-1, merged, width])
    return paddle.reshape(sums_of_equals(equal.astype(wide), x), [-1, width])


@paddle.jit.not_to_static
def _spare_rows(backend: Any, into: Array, slots: int, tokens: int) -> tuple[Any, Array]:
    """Return B * n, and the rows from there to B * N: one for each merged token."""
    if not paddle.in_dynamic_mode():
        batch = paddle.shape(into)[0]
        return batch * slots, paddle.arange(batch * slots, batch * tokens, dtype=into.dtype)
    kept, stop = into.shape[0] * slots, into.shape[0] * tokens
    return kept, backend.xp.arange(kept, stop, 1, into.dtype, backend.device(into))


@paddle.jit.not_to_static
def _write(base: Array, rows: Array, updates: Array) -> Array:
    """Write ``updates`` to ``rows`` of ``base``, in place if no gradients are needed."""
    if paddle.in_dynamic_mode() and base.stop_gradient and updates.stop_gradient:
        return paddle.scatter_(base, rows, updates)
    return paddle.scatter(base, rows, updates)
