"""Rank patches, find the kept patch nearest to each merged one, and build the plan; shared by the matchings.

A patch is a token after the prefix tokens. Token numbers count from 0, the first prefix token.
"""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array, Backend
from tomecore.core.plan import MergePlan, take_rows
from tomecore.matching.context import Context

__all__ = ["build_plan", "drop_merged", "each_sample", "nearest", "patch_order"]


def patch_order(context: Context, scores: Array) -> Array:
    """Return (B, N - protected) int: the patches from the highest score to the lowest, padding last.

    ``scores`` is (B, N), all 0 or more. In a tie, the first patch comes first.
    """
    xp, front = context.backend.xp, context.protected
    scores = scores[:, front:]
    if context.valid is not None:
        scores = xp.where(context.valid[:, front:], scores, xp.zeros_like(scores) - 1)
    return xp.argsort(scores, axis=1, descending=True, stable=True) + front


def nearest(context: Context, units: Array, sources: Array, targets: Array) -> tuple[Array, Array]:
    """Find the token of ``targets`` that is most similar to each of ``sources``; ties go to the first.

    Padding is chosen only if all targets are padding.

    Args:
        context: its backend and padding are read.
        units: (B, N, D), keys of norm 1.
        sources: (B, s) int, token numbers.
        targets: (B, t) int, token numbers.

    Returns:
        (B, s) int, the token number of the nearest target; and (B, s), its cosine, minus 4 if it is padding.
    """
    backend, xp = context.backend, context.backend.xp
    cosine = backend.products(
        take_rows(backend, units, sources), take_rows(backend, units, targets)
    )
    if context.valid is not None:
        padding = 1 - xp.astype(context.valid, cosine.dtype)
        cosine = cosine - 4 * xp.take_along_axis(padding, targets, axis=1)[:, None, :]
    best, where = backend.max_rows(cosine)
    where = xp.argmax(cosine, axis=2) if where is None else where
    where = xp.astype(where, targets.dtype, copy=False)
    return xp.take_along_axis(targets, where, axis=1), best


def build_plan(context: Context, kept: Array, merged: Array, targets: Array) -> MergePlan:
    """Build the plan whose slots are the prefix tokens and then ``kept``.

    Args:
        context: its backend and prefix tokens are read.
        kept: (B, n - protected) int, the patches to keep.
        merged: (B, r) int, the other patches.
        targets: (B, r) int, the kept patch that each of ``merged`` goes to.
    """
    backend, xp = context.backend, context.backend.xp
    if context.protected:
        kept = xp.concat([backend.batched_arange(kept, 0, context.protected, 1), kept], axis=1)
    tokens = xp.concat([kept, merged], axis=1)
    numbers = 0 * tokens + backend.batched_arange(tokens, 0, tokens.shape[1], 1)
    into = xp.take_along_axis(backend.permute(tokens, numbers), targets, axis=1)
    return MergePlan.unchecked(backend, tokens, into, kept.shape[1])


def drop_merged(context: Context, plan: MergePlan) -> tuple[Array, Array]:
    """Return the weights that turn the merges of ``plan`` into drops.

    A token that merges into padding keeps its weight, because its slot has no other content.

    Returns:
        (B, N) float32, the weights in the mean: 1 for kept tokens and 0 for merged ones; and (B, r), those of
        the merged tokens.
    """
    backend, xp = context.backend, context.backend.xp
    kept = xp.astype(xp.ones_like(plan.kept), xp.float32)
    merged = xp.astype(xp.zeros_like(plan.merged), xp.float32)
    if context.valid is not None:
        padding = 1 - xp.astype(context.valid, xp.float32)
        slots = xp.take_along_axis(padding, plan.kept, axis=1)
        merged = xp.take_along_axis(slots, plan.into, axis=1)
    tokens = xp.concat([plan.kept, plan.merged], axis=1)
    return backend.permute(tokens, xp.concat([kept, merged], axis=1)), merged


def each_sample(backend: Backend, keys: Array, numbers: Any) -> Array:
    """Return (B, n) int: the NumPy array ``numbers`` (n,), repeated for each sample of ``keys`` (B, N, D)."""
    xp = backend.xp
    one = xp.asarray(numbers, device=backend.device(keys))
    return xp.astype(xp.zeros_like(backend.detach(keys)[:, :1, 0]), one.dtype) + one
