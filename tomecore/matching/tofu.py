"""Token Fusion: drop tokens in the early layers, merge them in the late ones and keep their norm."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.checks import whole_number
from tomecore.core.plan import MergePlan
from tomecore.matching.bipartite import tome
from tomecore.matching.context import Context
from tomecore.matching.selection import drop_merged

__all__ = ["tofu"]


def tofu(keys: Array, r: int, context: Context, *, prune_layers: int | None = None) -> MergePlan:
    """Choose tokens as :func:`tome` does; drop them in the early layers, and merge them in the late ones.

    A dropped token adds to the size of its destination, but does not change its value. In the late layers,
    the mean is scaled to the largest norm of its tokens (MLERP), because plain means get shorter and shorter.

    Cost: that of :func:`tome`; in the late layers the norms of all tokens, O(N C).

    Source: Token Fusion (Kim et al., ToFu, WACV 2024): early layers drop, late layers merge by MLERP. Here an
    option sets how many layers are early. The ToFu in PiToMe's code divides by the norm of the destination,
    not by that of the mean, so its result does not have the largest norm.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its layer, number of layers, backend, prefix tokens and padding are read.
        prune_layers: the number of early layers. None: half of the layers, rounded down.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``prune_layers`` is not an integer of at least 0.
    """
    early = context.num_layers // 2
    if prune_layers is not None:
        early = whole_number(prune_layers, "prune_layers", unit="layers")
    plan = tome(keys, r, context)
    if context.layer >= early:
        return plan.weighted(keep_norm=True)
    return plan.weighted(mean_weight=drop_merged(context, plan)[0])
