"""Merging that remembers: weighted by how many tokens each token already stands for, layer after layer."""

from __future__ import annotations

from tomecore._checks import floating, integral, rank, same_batch
from tomecore._plan import MergePlan, compute_dtype, take_rows
from tomecore.backends import Array, backend_of
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["compose", "merge_sizes", "merge_weighted", "merged_mean"]


def merge_weighted(plan: MergePlan, x: Array, size: Array | None = None) -> tuple[Array, Array]:
    """Merge tokens by the mean weighted with their sizes (ToMe, Bolya et al. 2023, section 3).

    Args:
        plan: which tokens merge.
        x: (B, N, C), real floating point.
        size: (B, N), how many original tokens each token stands for, 0 for padding; None: one each.

    Returns:
        The merged tokens (B, n, C) in the dtype of ``x``, and their sizes (B, n) in float32, which
        counts exactly up to 16,777,216 tokens whatever the precision of ``x``. The weights are
        size / merged size, never above 1, so half precision does not overflow; the sum runs in
        float32 (float64 for float64).

    Raises:
        ArgumentTypeError: an array of another library than the plan's, or ``x`` not floating.
        ArgumentValueError: a wrong shape.
    """
    for array, name in ((x, "x"), (size, "size")):
        if array is not None and backend_of(array) is not plan.backend:
            raise ArgumentTypeError(
                f"`{name}` must come from the library of the plan, {plan.backend.name}; "
                f"got {type(array).__module__}.{type(array).__qualname__}"
            )
    rank(x, "x", "(B, N, C)")
    floating(plan.backend.xp, x, "x")
    if size is not None:
        rank(size, "size", "(B, N)")
    for array, name in ((x, "x"), (size, "size")):
        if array is None:
            continue
        same_batch(array, name, plan.kept)
        if array.shape[1] != plan.num_tokens:
            raise ArgumentValueError(
                f"`{name}` must have {plan.num_tokens} tokens on axis 1, as this plan has; "
                f"got shape {tuple(array.shape)}"
            )
    merged = merge_sizes(plan, size)
    return merged_mean(plan, x, size, merged), merged


def merge_sizes(plan: MergePlan, size: Array | None) -> Array:
    """Sizes (B, n) float32 after ``plan``, from sizes (B, N) before it, or None for one each."""
    xp = plan.backend.xp
    if size is None:
        kept = xp.astype(xp.ones_like(plan.kept), xp.float32)
        gone = xp.astype(xp.ones_like(plan.merged), xp.float32)
    else:
        size = xp.astype(size, xp.float32, copy=False)
        kept = xp.take_along_axis(size, plan.kept, axis=1)
        gone = xp.take_along_axis(size, plan.merged, axis=1)
    if plan.num_merged == 0:
        return kept
    return plan.backend.accumulate(kept[:, :, None], plan.into, gone[:, :, None])[:, :, 0]


def merged_mean(plan: MergePlan, x: Array, size: Array | None, merged: Array) -> Array:
    """The weighted mean itself: x (B, N, C) with sizes ``size``, to slots with sizes ``merged``.

    Each destination moves towards every token merged into it, by that token's share of the new size:
    the same mean, touching r rows instead of all n.
    """
    backend, xp = plan.backend, plan.backend.xp
    wide = compute_dtype(xp, x.dtype)
    out = xp.astype(take_rows(backend, x, plan.kept), wide, copy=False)
    if plan.num_merged:
        total = xp.take_along_axis(xp.astype(merged, wide, copy=False), plan.into, axis=1)
        if size is None:
            share = 1 / total
        else:
            size = xp.astype(size, wide, copy=False)
            total = xp.where(total > 0, total, xp.ones_like(total))  # padding among itself
            share = xp.take_along_axis(size, plan.merged, axis=1) * (1 / total)
        gone = xp.astype(take_rows(backend, x, plan.merged), wide, copy=False)
        step = (gone - take_rows(backend, out, plan.into)) * share[:, :, None]
        out = backend.accumulate(out, plan.into, step)
    return xp.astype(out, x.dtype, copy=False)


def compose(source: Array | None, plan: MergePlan) -> Array:
    """Follow tokens through one more merge.

    Args:
        source: (B, N0) int; the token of ``plan``'s input that holds each original token. None: the
            originals are ``plan``'s input.
        plan: the merge to follow.

    Returns:
        (B, N0) int; the slot of ``plan``'s output that holds each original token.
    """
    if source is None:
        return plan.slots
    if backend_of(source) is not plan.backend:
        raise ArgumentTypeError(
            f"`source` must come from the library of the plan, {plan.backend.name}; "
            f"got {type(source).__module__}.{type(source).__qualname__}"
        )
    rank(source, "source", "(B, N0)")
    integral(plan.backend.xp, source, "source")
    same_batch(source, "source", plan.kept)
    return plan.backend.xp.take_along_axis(plan.slots, source, axis=1)
