"""Merge over several layers: weight tokens by their sizes, and follow where each token goes."""

from __future__ import annotations

from typing import Any

from tomecore.backends import Index, Sizes, Tokens, backend_of
from tomecore.core.checks import floating, integral, rank, real, same_batch
from tomecore.core.mean import weighted_mean
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["compose", "merge_weighted", "weighted_mean"]


def merge_weighted(plan: MergePlan, x: Tokens, size: Sizes | None = None) -> tuple[Tokens, Sizes]:
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
        A token of size 0 has no effect, whatever its values; if padding merges into padding, the kept
        token keeps its values.

    Raises:
        ArgumentTypeError: ``plan`` is not a MergePlan, an array comes from another library than the plan,
            ``x`` is not floating point, or ``size`` is complex.
        ArgumentValueError: an array has the wrong shape.
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
    return weighted_mean(plan, x, size)


def compose(source: Index | None, plan: MergePlan) -> Index:
    """Follow the original tokens through one more merge.

    Args:
        source: (B, N0) int; the input token of ``plan`` that holds each original token. None: the
            original tokens are the input of ``plan``.
        plan: the merge to follow.

    Returns:
        (B, N0) int; the output slot of ``plan`` that holds each original token.

    Raises:
        ArgumentTypeError: ``plan`` is not a MergePlan, or ``source`` does not hold integers or comes from
            another library than the plan.
        ArgumentValueError: ``source`` has the wrong shape. Its values are not checked, because reading
            them would make the host wait for the device.
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
    """Raise unless ``plan`` is a MergePlan; the published code passes its merging function instead."""
    if isinstance(plan, MergePlan):
        return
    found = f"{type(plan).__module__}.{type(plan).__qualname__}"
    hint = "Pass the plan that bipartite_soft_matching or another matching returned"
    if callable(plan):
        name = getattr(plan, "__qualname__", found)
        found = f"the function {name}"
        hint = (
            "The published code passes the merging function, merge_wavg(merge, x, size); here, pass the "
            "plan: `plan = bipartite_soft_matching(...)` instead of `merge, unmerge = ...`"
        )
    elif isinstance(plan, (tuple, list)):
        hint = "A pair (merge, unmerge) is an unpacked plan; pass the plan itself, without unpacking it"
    raise ArgumentTypeError(f"`plan` must be a MergePlan; got {found}. {hint}: {call}.")
