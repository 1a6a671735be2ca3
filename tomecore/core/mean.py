"""Compute the size-weighted mean, without checks; the public form is in :mod:`tomecore.core.merging`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomecore.backends import Array

__all__ = ["compute_dtype", "weighted_mean"]


def compute_dtype(xp: Any, dtype: Any) -> Any:
    """Return the dtype for similarities and means: float32, or ``dtype`` if that is wider.

    NumPy's byte-swapped float64 counts as float64, and its long double is kept.
    """
    if dtype == xp.float64:
        return dtype
    return np.promote_types(dtype, np.float32) if isinstance(dtype, np.dtype) else xp.float32


def weighted_mean(
    plan: Any, x: Array, size: Array | None, padded: bool = True
) -> tuple[Array, Array]:
    """Compute :func:`tomecore.merge_weighted` without checks, in few operations.

    Each destination moves towards every token merged into it, by that token's share of the new size. This
    is the same mean, but it touches r rows instead of all n. ``padded``: whether a size may be 0.

    A whole step may exceed the largest finite number, so each step is added in two halves; the value in
    between lies between the numbers that are averaged. Steps start from finite numbers, because an
    infinite destination cannot move, and infinity minus infinity is NaN.
    """
    backend, xp, width = plan.backend, plan.backend.xp, x.shape[2]
    wide = compute_dtype(xp, x.dtype)
    if size is None:
        sizes = xp.astype(xp.ones_like(plan.kept), xp.float32)
        weight = xp.astype(xp.ones_like(plan.merged), xp.float32)
    else:
        size = xp.astype(size, xp.float32, copy=False)
        sizes = xp.take_along_axis(size, plan.kept, axis=1)
        weight = xp.take_along_axis(size, plan.merged, axis=1)
    flat = xp.reshape(x, (-1, width))
    kept = backend.flat_rows(plan.kept, plan.num_tokens)
    out = xp.astype(xp.take(flat, kept, axis=0), wide, copy=False)
    if plan.num_merged:
        into = backend.flat_rows(plan.into, plan.num_slots)
        sizes = backend.add_sizes(sizes, plan.into, weight)
        total = xp.astype(xp.take_along_axis(sizes, plan.into, axis=1), wide, copy=False)
        gone = backend.flat_rows(plan.merged, plan.num_tokens)
        gone = xp.astype(xp.take(flat, gone, axis=0), wide, copy=False)
        padded = padded and size is not None
        if padded:
            total = xp.where(total > 0, total, xp.ones_like(total))
            own = xp.take_along_axis(size, plan.kept, axis=1)
            out = _without(xp, out, xp.where(sizes > 0, own, xp.ones_like(own)))
        start = xp.take(out, into, axis=0)
        limit = _largest(wide, wide == xp.float64)
        start = xp.clip(start, min=-limit, max=limit)
        if padded:
            gone = _without(xp, gone, weight, start)
        share = xp.reshape(xp.astype(weight, wide, copy=False) / total, (-1, 1))
        step = (0.5 * gone - 0.5 * start) * share
        for _ in range(2):
            out = backend.add_rows(out, plan.into, step, into, plan.num_slots)
    out = xp.reshape(out, (-1, plan.num_slots, width))
    return xp.astype(out, x.dtype, copy=False), sizes


def _without(xp: Any, rows: Array, size: Array, instead: Array | None = None) -> Array:
    """Replace ``rows`` (B * n, C) by ``instead``, or 0, where ``size`` (B, n) is 0: padding is arbitrary."""
    instead = xp.zeros_like(rows) if instead is None else instead
    return xp.where(xp.reshape(size, (-1, 1)) > 0, rows, instead)


def _largest(wide: Any, double: bool) -> Any:
    """Return the largest finite number of the dtype ``wide``."""
    if isinstance(wide, np.dtype):
        return np.finfo(wide).max
    return 1.7976931348623157e308 if double else 3.4028234663852886e38
