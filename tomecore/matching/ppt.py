"""PPT: drop the least important tokens of an image if importance varies much; else merge as ToMe does."""

from __future__ import annotations

from tomecore.backends import Array
from tomecore.core.checks import real_number
from tomecore.core.plan import MergePlan, compute_dtype
from tomecore.matching.bipartite import tome
from tomecore.matching.context import Context
from tomecore.matching.registry import needs
from tomecore.matching.selection import build_plan, drop_merged, nearest, patch_order
from tomecore.matching.similarity import unit_keys

__all__ = ["ppt"]


@needs("class_attention", "values")
def ppt(keys: Array, r: int, context: Context, *, threshold: float = 7e-5) -> MergePlan:
    """Merge as :func:`tome` does, or drop the r least important patches of images whose importance varies.

    The score of patch i is sum_h(a_hi) * |v_i|. Here a_hi is the attention of the class token to the patch in
    head h, and v_i is the value of the patch over all heads. Scores are divided by their sum over the
    patches. If the variance of the scores of an image is below ``threshold``, no patch stands out, and the
    image merges. Otherwise it drops the patches with the lowest scores, which add nothing to any mean or
    size. When all tokens are restored, a dropped position gets the kept patch with the most similar key.

    The default threshold was chosen for 197 tokens; with fewer tokens the variance is larger.

    Needs: class attention, values. Cost: one query row, O(N C), :func:`tome`, and the similarities of r x
    (N - r) keys; both plans are computed and the right one is selected, without reading a value on the host.

    Source: PPT (Wu et al., Token Pruning and Pooling for Efficient Vision Transformers, 2023). It merges in
    blocks 3, 6 and 9 only, counted from 0: ``model.r = [0, 0, 0, 50, 0, 0, 50, 0, 0, 50]``. The variance is
    that of a sample, divided by n - 1, as in the published code, which splits the batch by reading values.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge or drop, 0 < r <= (N - protected) // 2.
        context: its class attention, values, sizes, backend, prefix tokens and padding are read.
        threshold: images whose variance is at least this drop tokens.

    Raises:
        ArgumentTypeError: ``threshold`` is not a number.
    """
    threshold = real_number(threshold, "threshold")
    backend, xp = context.backend, context.backend.xp
    scores, variance = _scores(context)
    order = patch_order(context, scores)
    left = order.shape[1] - r
    kept, gone = xp.sort(order[:, :left], axis=1), order[:, left:]
    targets, _ = nearest(context, unit_keys(backend, keys), gone, kept)
    drops, merges = build_plan(context, kept, gone, targets), tome(keys, r, context)

    merging = (variance < threshold)[:, None]
    both = [xp.concat([plan.kept, plan.merged], axis=1) for plan in (merges, drops)]
    tokens, into = xp.where(merging, *both), xp.where(merging, merges.into, drops.into)
    plan = MergePlan.unchecked(backend, tokens, into, keys.shape[1] - r)
    weight, share = drop_merged(context, drops)
    weight = xp.where(merging, context.sizes, context.sizes * weight)
    share = xp.where(merging, xp.ones_like(share), xp.zeros_like(share))
    return plan.weighted(mean_weight=weight, size_weight=share)


def _scores(context: Context) -> tuple[Array, Array]:
    """Return the scores (B, N) before division by their sum, and the variance (B,) after it."""
    xp, front, values = context.backend.xp, context.protected, context.values()
    values = xp.astype(values, compute_dtype(xp, values.dtype), copy=False)
    norms = xp.sqrt(xp.sum(xp.sum(values * values, axis=3), axis=1))
    scores = context.class_attention() * norms
    patches = scores[:, front:]
    ones = xp.ones_like(patches)
    if context.valid is not None:
        ones = xp.astype(context.valid[:, front:], patches.dtype)
    total = xp.sum(patches * ones, axis=1, keepdims=True)
    share = patches / xp.where(total > 0, total, xp.ones_like(total))
    count = xp.clip(xp.sum(ones, axis=1, keepdims=True), min=1.0)
    far = (share - xp.sum(share * ones, axis=1, keepdims=True) / count) * ones
    return scores, xp.sum(far * far, axis=1) / xp.clip(count[:, 0] - 1, min=1.0)
