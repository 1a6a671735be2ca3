"""Bipartite matching in both directions: half of the merges go from even to odd tokens, half back."""

from __future__ import annotations

from tomecore.backends import Array, Backend
from tomecore.core.plan import MergePlan
from tomecore.matching.context import Context
from tomecore.matching.selection import build_plan
from tomecore.matching.similarity import unit_keys

__all__ = ["bidirectional"]


def bidirectional(keys: Array, r: int, context: Context) -> MergePlan:
    """Merge even tokens into odd ones, and then as many odd tokens into even ones.

    First, ceil(r / 2) even tokens merge, each into the odd token most similar to it. Then floor(r / 2) odd
    tokens merge, each into the most similar of the even tokens that are left; an odd token that is already a
    destination does not merge. In both steps, those with the highest similarities merge. The slots are the
    prefix tokens, then the even tokens, then the odd ones, each in ascending order.

    Cost: that of :func:`tome`, O(N^2 D), plus a second maximum and sort of the same similarities.

    Source: MCTF (Lee et al., Multi-criteria Token Fusion, CVPR 2024), which merges in both directions. Its
    other criteria need the full attention map; here only the similarity of keys counts.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its backend, prefix tokens and padding are read.
    """
    backend, xp, front, count = (
        context.backend,
        context.backend.xp,
        context.protected,
        keys.shape[1],
    )
    starts = front + front % 2, front + 1 - front % 2
    units = unit_keys(backend, keys)
    cosine = backend.products(*(backend.every_second(units, start) for start in starts))
    padding = xp.zeros_like(units[:, :, :1])
    if context.valid is not None:
        padding = 1 - xp.astype(context.valid, units.dtype)[:, :, None]
    pads, odd_pads = (backend.every_second(padding, start)[:, :, 0] for start in starts)
    half = (r + 1) // 2
    gone, stay, into = _best_edges(backend, cosine - 4 * odd_pads[:, None, :], 8 * pads, half)
    evens, odds = (backend.batched_arange(gone, start, count, 2) for start in starts)
    merged, targets = (
        xp.take_along_axis(evens, gone, axis=1),
        xp.take_along_axis(odds, into, axis=1),
    )
    left = odds
    if r > half:
        ones = xp.ones_like(8 * pads[:, :half])
        absent = backend.add_sizes(xp.zeros_like(pads), gone, ones)
        taken = backend.add_sizes(xp.zeros_like(odd_pads), into, ones)
        taken = xp.astype(taken > 0, units.dtype)
        back = xp.permute_dims(cosine, (0, 2, 1)) - (4 * pads + 16 * absent)[:, None, :]
        gone, rest, into = _best_edges(backend, back, 8 * odd_pads - 64 * taken, r - half)
        merged = xp.concat([merged, xp.take_along_axis(odds, gone, axis=1)], axis=1)
        targets = xp.concat([targets, xp.take_along_axis(evens, into, axis=1)], axis=1)
        left = xp.sort(xp.take_along_axis(odds, rest, axis=1), axis=1)
    stay = xp.sort(xp.take_along_axis(evens, stay, axis=1), axis=1)
    return build_plan(context, xp.concat([stay, left], axis=1), merged, targets)


def _best_edges(
    backend: Backend, cosine: Array, first: Array, amount: int
) -> tuple[Array, Array, Array]:
    """Choose the ``amount`` rows of ``cosine`` (B, s, t) with the largest maximum plus ``first`` (B, s).

    Returns the chosen rows, the other rows, and the columns of the maxima of the chosen rows.
    """
    xp = backend.xp
    best, where = backend.max_rows(cosine)
    order = xp.argsort(best + first, axis=1, descending=True, stable=True)
    chosen = order[:, :amount]
    columns = backend.argmax_rows(cosine, where, chosen)
    return chosen, order[:, amount:], xp.astype(columns, order.dtype, copy=False)
