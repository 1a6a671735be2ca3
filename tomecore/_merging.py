"""Merging that remembers: weighted by how many tokens each token already stands for, layer after layer."""

from __future__ import annotations

from tomecore._checks import floating, integral, rank, same_batch
from tomecore._plan import MergePlan, compute_dtype
from tomecore.backends import Array, backend_of
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["compose", "merge_weighted", "merged_mean"]


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
    return merged_mean(plan, x, size)


def merged_mean(
    plan: MergePlan, x: Array, size: Array | None, padded: bool = True
) -> tuple[Array, Array]:
    """:func:`merge_weighted` without checks, in as few steps as there can be.

    Each destination moves towards every token merged into it, by that token's share of the new size:
    the same mean, touching r rows instead of all n. ``padded``: whether a size may be 0.
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
        if padded:  # of padding among itself it is 0, and so is its share
            total = xp.clip(total, min=1e-30)
        share = xp.reshape(xp.astype(weight, wide, copy=False) / total, (-1, 1))
        gone = backend.flat_rows(plan.merged, plan.num_tokens)
        step = xp.astype(xp.take(flat, gone, axis=0), wide, copy=False)
        step = (step - xp.take(out, into, axis=0)) * share
        out = backend.add_rows(out, plan.into, step, into, plan.num_slots)
    out = xp.reshape(out, (-1, plan.num_slots, width))
    return xp.astype(out, x.dtype, copy=False), sizes


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
