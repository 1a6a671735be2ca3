"""Merging that remembers: weighted by how many tokens each token already stands for, layer after layer."""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array, backend_of
from tomecore.core.checks import floating, integral, rank, real, same_batch
from tomecore.core.mean import merged_mean
from tomecore.core.plan import MergePlan
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
        size / merged size, never above 1, and the sum runs in float32 (float64 for float64): numbers at
        the edge of the range do not overflow, and the mean of infinity and a finite number is infinity.
        A token of size 0 counts for nothing, whatever it holds; padding merged into padding leaves what
        the kept token held.

    Raises:
        ArgumentTypeError: ``plan`` is no MergePlan, an array is of another library than the plan's, ``x``
            is not floating, or ``size`` is complex.
        ArgumentValueError: a wrong shape.
    """
    _a_plan(plan, "merge_weighted(plan, x, size)")
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
        real(plan.backend.xp, size, "size")
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


def compose(source: Array | None, plan: MergePlan) -> Array:
    """Follow tokens through one more merge.

    Args:
        source: (B, N0) int; the token of ``plan``'s input that holds each original token. None: the
            originals are ``plan``'s input.
        plan: the merge to follow.

    Returns:
        (B, N0) int; the slot of ``plan``'s output that holds each original token.

    Raises:
        ArgumentTypeError: ``plan`` is no MergePlan, or ``source`` does not hold integers, or is of another
            library than the plan's.
        ArgumentValueError: a wrong shape. That numbers in ``source`` are below N is not checked, because
            reading them would make the host wait for the device.
    """
    _a_plan(plan, "compose(source, plan)")
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


def _a_plan(plan: Any, call: str) -> None:
    """Check that ``plan`` is one; the published code hands over its merging function instead."""
    if isinstance(plan, MergePlan):
        return
    found = f"{type(plan).__module__}.{type(plan).__qualname__}"
    hint = "Give the plan that bipartite_soft_matching or another matching returned"
    if callable(plan):
        name = getattr(plan, "__qualname__", found)
        found = f"the function {name}"
        hint = (
            "The published code gives the merging function, merge_wavg(merge, x, size); here, give the plan: "
            "`plan = bipartite_soft_matching(...)` instead of `merge, unmerge = ...`"
        )
    elif isinstance(plan, (tuple, list)):
        hint = "A pair (merge, unmerge) is a plan unpacked; give the plan itself, not unpacked"
    raise ArgumentTypeError(f"`plan` must be a MergePlan; got {found}. {hint}: {call}.")
