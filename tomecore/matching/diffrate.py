"""DiffRate: keep the tokens that the class token attends to; merge or drop the others."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.checks import real_number
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentValueError
from tomecore.matching.context import Context
from tomecore.matching.registry import needs
from tomecore.matching.selection import build_plan, nearest, patch_order
from tomecore.matching.similarity import unit_keys

__all__ = ["diffrate"]


@needs("class_attention")
def diffrate(keys: Array, r: int, context: Context, *, prune: float = 0.0) -> MergePlan:
    """Merge the r patches that the class token attends to least, each into the most similar kept patch.

    Similarity is the cosine of the tokens, not of the keys. In the mean all tokens weigh 1, not their sizes.
    The slot gains the size of the merged token times the cosine of the two, so a less similar token adds
    less. Cosines below 0 count as 0: with a negative one a size could become 0 or less, and proportional
    attention takes the logarithm of sizes. Slots are in ascending order.

    Needs: class attention. Cost: one query row, O(N C), and the similarities of r x (N - r) tokens,
    O(r N C). Tokens are several times wider than keys.

    Source: DiffRate (Chen et al., ICCV 2023), section 3. Its published code sorts the tokens by importance in
    every block, which changes only their order, and learns how many tokens each block prunes and merges;
    here ``r`` and ``prune`` set these numbers.

    Args:
        keys: (B, N, D); not read.
        r: tokens to merge or drop, 0 < r <= (N - protected) // 2.
        context: its tokens, class attention, backend, prefix tokens and padding are read.
        prune: the share of the r tokens to drop instead of merging, from 0 to 1; the least important are
            dropped.

    Raises:
        ArgumentTypeError: ``prune`` is not a number.
        ArgumentValueError: ``prune`` is below 0 or above 1.
    """
    if not 0 <= real_number(prune, "prune") <= 1:
        raise ArgumentValueError(
            f"`prune`, the share of the r tokens that are dropped, must be from 0 to 1; got {prune!r}"
        )
    backend, xp = context.backend, context.backend.xp
    order = patch_order(context, context.class_attention())
    left = order.shape[1] - r
    kept, gone = order[:, :left], order[:, left:]
    kept = xp.sort(kept, axis=1)
    targets, cosine = nearest(context, unit_keys(backend, context.x), gone, kept)
    plan = build_plan(context, kept, gone, targets)
    share, dropped = xp.clip(cosine, min=0.0, max=1.0), int(prune * r + 0.5)
    weight = xp.astype(xp.ones_like(context.x[:, :, 0]), xp.float32)
    if dropped:
        merges = backend.batched_arange(gone, 0, r, 1) < r - dropped
        share = xp.where(merges, share, xp.zeros_like(share))
        merges = backend.batched_arange(order, 0, keys.shape[1], 1) < keys.shape[1] - dropped
        tokens = xp.concat([plan.kept, plan.merged], axis=1)
        weight = backend.permute(tokens, xp.astype(merges, xp.float32))
    return plan.weighted(mean_weight=weight, size_weight=share)
