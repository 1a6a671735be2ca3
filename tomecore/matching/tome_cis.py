"""ToMeCIS: merge the tokens that ToMe merges, by a mean weighted with the class attention."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.plan import MergePlan, compute_dtype
from tomecore.matching.bipartite import tome
from tomecore.matching.context import Context
from tomecore.matching.registry import needs

__all__ = ["tome_cis"]


@needs("class_attention", "values")
def tome_cis(keys: Array, r: int, context: Context) -> MergePlan:
    """Merge as :func:`tome` does, by a mean in which important tokens weigh more.

    The weight of token i is w_i = mean_h(a_hi) * |mean_h(v_hi)|. Here a_hi is the attention of the class
    token to token i in head h, and v_hi is the value of token i there. Sizes add up as usual, for
    proportional attention.

    Needs: class attention, values. Cost: one query row, O(N C), in addition to :func:`tome`.

    Source: Token Merging with Class Importance Score (ToMeCIS), with the weights of its published code.
    There too, the mean does not depend on sizes.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its class attention, values, backend, prefix tokens and padding are read.
    """
    backend, xp = context.backend, context.backend.xp
    values = context.values()
    values = xp.astype(values, compute_dtype(xp, values.dtype), copy=False)
    mean = xp.sum(values, axis=1) / values.shape[1]
    weight = context.class_attention() * backend.norm(mean)[:, :, 0]
    return tome(keys, r, context).weighted(mean_weight=weight)
