"""EViT: fuse the patches that the class token attends to least into one."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.matching.context import Context
from tomecore.matching.registry import needs
from tomecore.matching.selection import build_plan, patch_order

__all__ = ["evit"]


@needs("class_attention")
def evit(keys: Array, r: int, context: Context) -> MergePlan:
    """Fuse the r + 1 patches that the class token attends to least into one token.

    The new token is their mean, weighted by the class attention, in the slot of the one with the most
    attention. Slots are in ascending order.

    Needs: class attention. Cost: one query row, O(N C), and a sort; it computes no similarities.

    Source: EViT (Liang et al., Not All Patches are What You Need, ICLR 2022), section 3. EViT itself adds the
    tokens with these weights without dividing by their sum, appends the fused token at the end, and has no
    proportional attention: ``apply_patch(model, matching="evit", prop_attn=False)``. EViT
    models are trained that way; in other models, the mean keeps the fused token as large as the others.

    Args:
        keys: (B, N, D); not read.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its class attention, backend, prefix tokens and padding are read.
    """
    xp, attention = context.backend.xp, context.class_attention()
    order = patch_order(context, attention)
    left = order.shape[1] - r
    kept, gone = order[:, :left], order[:, left:]
    targets = 0 * gone + kept[:, left - 1 :]
    plan = build_plan(context, xp.sort(kept, axis=1), gone, targets)
    return plan.weighted(mean_weight=attention)
