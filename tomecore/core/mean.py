"""Compute the size-weighted mean, without checks; the public form is in :mod:`tomecore.core.merging`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tomecore.backends import Array, Backend, Index, Rows, Sizes, Tokens

__all__ = ["Plan", "compute_dtype", "weighted_mean"]


class Plan(Protocol):
    """The parts of a :class:`tomecore.MergePlan` that the mean reads."""

    @property
    def backend(self) -> Backend:
        """The backend of the plan's arrays."""

    @property
    def kept(self) -> Index:
        """(B, n) int: the input token that each output slot starts from."""

    @property
    def merged(self) -> Index:
        """(B, r) int: the input tokens that disappear."""

    @property
    def into(self) -> Index:
        """(B, r) int: the output slot that each of ``merged`` goes to."""

    @property
    def mean_weight(self) -> Sizes | None:
        """(B, N): the weight of each input token in means; None: its size."""

    @property
    def size_weight(self) -> Sizes | None:
        """(B, r): the share of the size of each merged token that its slot gains; None: all of it."""

    @property
    def keep_norm(self) -> bool:
        """Whether means are scaled to the largest norm of the tokens that they average."""

    @property
    def rows(self) -> Rows:
        """The plan as rows of the whole batch."""

    @property
    def num_tokens(self) -> int:
        """N: the number of tokens before merging."""

    @property
    def num_slots(self) -> int:
        """n: the number of tokens after merging."""

    @property
    def num_merged(self) -> int:
        """r: the number of tokens that disappear."""


def compute_dtype(xp: Any, dtype: Any) -> Any:
    """Return the dtype for similarities and means: float32, or ``dtype`` if that is wider.

    NumPy's byte-swapped float64 counts as float64, and its long double is kept.
    """
    if dtype == xp.float64:
        return dtype
    return np.promote_types(dtype, np.float32) if isinstance(dtype, np.dtype) else xp.float32


def weighted_mean(
    plan: Plan, x: Tokens, size: Sizes | None, padded: bool = True
) -> tuple[Tokens, Sizes]:
    """Compute :func:`tomecore.merge_weighted` without checks, in few operations.

    Each destination moves towards every token merged into it, by that token's share of the new weight. This
    is the same mean, but it touches r rows instead of all n. ``padded``: whether a size may be 0.

    A whole step may exceed the largest finite number, so each step is added in two halves; the value in
    between lies between the numbers that are averaged. Steps start from finite numbers, because an
    infinite destination cannot move, and infinity minus infinity is NaN.
    """
    backend, xp, width = plan.backend, plan.backend.xp, x.shape[2]
    averaged = backend.average_rows(plan, x, size, padded)
    if averaged is not None:
        return averaged
    wide = compute_dtype(xp, x.dtype)
    padded = padded and size is not None
    if size is None:
        sizes = xp.astype(xp.ones_like(plan.kept), xp.float32)
        weight = xp.astype(xp.ones_like(plan.merged), xp.float32)
    else:
        size = xp.astype(size, xp.float32, copy=False)
        sizes = xp.take_along_axis(size, plan.kept, axis=1)
        weight = xp.take_along_axis(size, plan.merged, axis=1)
    weights = size
    if plan.mean_weight is not None:
        weights = xp.astype(plan.mean_weight, xp.float32, copy=False)
        if padded and size is not None:
            weights = xp.where(size > 0, weights, xp.zeros_like(weights))
    if plan.num_merged:
        gained = weight
        if plan.size_weight is not None:
            gained = weight * xp.astype(plan.size_weight, xp.float32, copy=False)
        sizes = backend.add_sizes(sizes, plan.into, gained)
    totals = sizes
    if plan.mean_weight is not None:
        weight = xp.take_along_axis(weights, plan.merged, axis=1)
        padded = True  # a weight may be 0, as the size of padding is
    if plan.num_merged and (plan.mean_weight is not None or plan.size_weight is not None):
        totals = backend.add_sizes(_weights_of(xp, plan, weights), plan.into, weight)
    flat = xp.reshape(x, (-1, width))
    kept = backend.flat_rows(plan.kept, plan.num_tokens)
    out = xp.astype(xp.take(flat, kept, axis=0), wide, copy=False)
    if plan.num_merged:
        into = backend.flat_rows(plan.into, plan.num_slots)
        total = xp.astype(xp.take_along_axis(totals, plan.into, axis=1), wide, copy=False)
        gone = backend.flat_rows(plan.merged, plan.num_tokens)
        gone = xp.astype(xp.take(flat, gone, axis=0), wide, copy=False)
        if padded:
            total = xp.where(total > 0, total, xp.ones_like(total))
            own = _weights_of(xp, plan, weights)
            out = _replace_empty(xp, out, xp.where(totals > 0, own, xp.ones_like(own)))
        start = xp.take(out, into, axis=0)
        limit = _largest(wide, wide == xp.float64)
        start = xp.clip(start, min=-limit, max=limit)
        if padded:
            gone = _replace_empty(xp, gone, weight, start)
        share = xp.reshape(xp.astype(weight, wide, copy=False) / total, (-1, 1))
        step = (0.5 * gone - 0.5 * start) * share
        for _ in range(2):
            out = backend.add_rows(out, plan.into, step, into, plan.num_slots)
    out = xp.reshape(out, (-1, plan.num_slots, width))
    if plan.keep_norm and plan.num_merged:
        own = _weights_of(xp, plan, weights)
        out = _with_largest_norm(plan, x, out, own, weight, wide)
    return xp.astype(out, x.dtype, copy=False), sizes


def _weights_of(xp: Any, plan: Any, weights: Array | None) -> Array:
    """Return a new array (B, n): the weights of the kept tokens; None stands for 1 each."""
    if weights is None:
        return xp.astype(xp.ones_like(plan.kept), xp.float32)
    return xp.take_along_axis(weights, plan.kept, axis=1)


def _with_largest_norm(
    plan: Any, x: Array, out: Array, own: Array, weight: Array, wide: Any
) -> Array:
    """Scale each token of ``out`` (B, n, C) that others merged into to the largest norm of its group.

    Tokens of weight 0 do not count: ``own`` (B, n) and ``weight`` (B, r) are the weights of the mean.
    """
    backend, xp = plan.backend, plan.backend.xp
    norms = _norm(xp, xp.astype(x, wide, copy=False))
    kept = xp.take_along_axis(norms, plan.kept, axis=1)
    merged = xp.take_along_axis(norms, plan.merged, axis=1)
    kept = xp.where(own > 0, kept, xp.zeros_like(kept))
    merged = xp.where(weight > 0, merged, xp.zeros_like(merged))
    largest = backend.scatter_max(kept[:, :, None], plan.into, merged[:, :, None])
    joined = backend.add_sizes(
        xp.zeros_like(own), plan.into, xp.astype(weight > 0, own.dtype, copy=False)
    )
    mean = _norm(xp, out)
    scale = largest[:, :, 0] / xp.where(mean > 0, mean, xp.ones_like(mean))
    scale = xp.where(joined > 0, scale, xp.ones_like(scale))
    return out * scale[:, :, None]


def _norm(xp: Any, x: Array) -> Array:
    """Return (B, n), the length of each row of ``x`` (B, n, C); the gradient at length 0 is 0."""
    squares = xp.sum(x * x, axis=2)
    ones = xp.ones_like(squares)
    return xp.where(squares > 0, xp.sqrt(xp.where(squares > 0, squares, ones)), 0 * ones)


def _replace_empty(xp: Any, rows: Array, size: Array, instead: Array | None = None) -> Array:
    """Replace ``rows`` (B * n, C) by ``instead``, or 0, where ``size`` (B, n) is 0: padding is arbitrary."""
    instead = xp.zeros_like(rows) if instead is None else instead
    return xp.where(xp.reshape(size, (-1, 1)) > 0, rows, instead)


def _largest(wide: Any, double: bool) -> Any:
    """Return the largest finite number of the dtype ``wide``."""
    if isinstance(wide, np.dtype):
        return np.finfo(wide).max
    return 1.7976931348623157e308 if double else 3.4028234663852886e38
