"""Drop similar tokens: a baseline that shows how much averaging adds to the choice of tokens."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentTypeError
from tomecore.matching.bipartite import tome
from tomecore.matching.context import Context
from tomecore.matching.selection import drop_merged

__all__ = ["drop_similar"]


def drop_similar(keys: Array, r: int, context: Context, *, keep_size: bool = True) -> MergePlan:
    """Choose tokens as :func:`tome` does, and drop them; their destinations stay as they are.

    Cost: that of :func:`tome`. Source: none; a baseline.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to drop, 0 < r <= (N - protected) // 2.
        context: its backend, prefix tokens and padding are read.
        keep_size: whether destinations gain the sizes of the dropped tokens, and with these their weight in
            proportional attention.

    Raises:
        ArgumentTypeError: ``keep_size`` is not a bool.
    """
    if not isinstance(keep_size, bool):
        raise ArgumentTypeError(f"`keep_size` must be True or False; got {keep_size!r}")
    plan = tome(keys, r, context)
    weight, share = drop_merged(context, plan)
    return plan.weighted(mean_weight=weight, size_weight=None if keep_size else share)
