"""Keep every k-th token: the first alternative in the appendix of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import numpy as np

from tomecore.backends import Backend, TokenKeys, backend_of
from tomecore.core.checks import floating, rank, whole_number
from tomecore.core.plan import MergePlan
from tomecore.matching.context import Context
from tomecore.matching.selection import build_plan, each_sample, nearest
from tomecore.matching.similarity import (
    asarray_like,
    best_partner,
    identity_plan,
    token_numbers,
    unit_keys,
)

__all__ = ["kth", "kth_bipartite_soft_matching"]


def kth_bipartite_soft_matching(
    keys: TokenKeys, /, k: int, *, protected: int = 0, backend: Backend | None = None
) -> MergePlan:
    """Keep every k-th token, and merge each of the others into the kept token most similar to it.

    Args:
        keys: (B, N, D) real floating point.
        k: tokens per group, 0 <= k; the last of each group is a destination. Nothing merges if
            k <= 1 or N - protected < k.
        protected: number of prefix tokens, which neither merge nor are merged into. Groups begin after them.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan whose slots are the protected tokens, then the (N - protected) // k destinations, then the
        tokens after the last whole group, which do not merge.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    k = whole_number(k, "k", unit="tokens")
    protected = whole_number(protected, "protected")
    tokens = keys.shape[1]
    if k <= 1 or tokens - protected < k:
        return identity_plan(backend, keys, tokens)

    groups = np.arange(protected, protected + (tokens - protected) // k * k).reshape(-1, k)
    source = asarray_like(backend, keys, groups[:, :-1].reshape(-1))
    target = asarray_like(backend, keys, groups[:, -1])
    front = token_numbers(backend, keys, 0, protected)
    tail = token_numbers(backend, keys, protected + groups.size, tokens)
    partner = best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    kept = backend.xp.concat([column + front, column + target, column + tail], axis=1)
    return MergePlan(kept, column + source, partner + protected, backend=backend)


def kth(keys: TokenKeys, r: int, context: Context, *, k: int = 2) -> MergePlan:
    """Merge the r tokens that are most similar to a destination; every k-th token is a destination.

    :func:`kth_bipartite_soft_matching` merges all tokens except the destinations. Here only r tokens merge;
    the tokens after the last whole group may merge too, and slots are in ascending order. If there are fewer
    than k tokens, the last one is the destination.

    Cost: the similarities of all tokens to every k-th, O(N^2 D / k). Source: the appendix of ToMe; the
    published code merges all tokens and cuts off those after the last whole group.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its backend, prefix tokens and padding are read.
        k: tokens per group, 2 or more; the last of each group is the destination.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``k`` is not an integer of at least 2.
    """
    backend, xp, front = context.backend, context.backend.xp, context.protected
    k = min(whole_number(k, "k", at_least=2), keys.shape[1] - front)
    numbers = np.arange(front, keys.shape[1])
    groups = numbers[: len(numbers) // k * k].reshape(-1, k)
    tail = numbers[groups.size :]
    sources = each_sample(backend, keys, np.concatenate([groups[:, :-1].reshape(-1), tail]))
    destinations = each_sample(backend, keys, groups[:, -1])
    targets, best = nearest(context, unit_keys(backend, keys), sources, destinations)
    if context.valid is not None:
        padding = 1 - xp.astype(context.valid, best.dtype)
        best = best + 8 * xp.take_along_axis(padding, sources, axis=1)
    order = xp.argsort(best, axis=1, descending=True, stable=True)
    gone = xp.take_along_axis(sources, order[:, :r], axis=1)
    stay = xp.take_along_axis(sources, order[:, r:], axis=1)
    kept = xp.sort(xp.concat([stay, destinations], axis=1), axis=1)
    return build_plan(context, kept, gone, xp.take_along_axis(targets, order[:, :r], axis=1))
