"""Merge random tokens: the second alternative in the appendix of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import operator

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

__all__ = ["random", "random_bipartite_soft_matching"]


def random_bipartite_soft_matching(
    keys: TokenKeys,
    /,
    r: int,
    seed: int = 0,
    *,
    protected: int = 0,
    backend: Backend | None = None,
) -> MergePlan:
    """Choose r tokens at random, and merge each into the most similar of the others: a baseline.

    Args:
        keys: (B, N, D) real floating point.
        r: tokens to merge, 0 <= r; capped at N - protected - 1.
        seed: seed of the permutation of the N - protected other tokens, which the whole batch shares.
            NumPy draws it (``numpy.random.default_rng(seed).permutation(N - protected)``) for every library,
            so every backend chooses the same tokens.
        protected: number of prefix tokens, which neither merge nor are merged into.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan in which the first r tokens of the permutation merge. Its slots are the protected tokens, then
        the rest of the permutation, in its order.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    r = whole_number(r, "r", unit="tokens")
    seed = whole_number(seed, "seed")
    protected = whole_number(protected, "protected")
    tokens = keys.shape[1]
    r = max(0, min(r, tokens - protected - 1))
    if r == 0:
        return identity_plan(backend, keys, tokens)

    permutation = protected + np.random.default_rng(seed).permutation(tokens - protected)
    source = asarray_like(backend, keys, permutation[:r])
    target = asarray_like(backend, keys, permutation[r:])
    front = token_numbers(backend, keys, 0, protected)
    partner = best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    kept = backend.xp.concat([column + front, column + target], axis=1)
    return MergePlan(kept, column + source, partner + protected, backend=backend)


def random(keys: TokenKeys, r: int, context: Context, *, seed: int = 0) -> MergePlan:
    """Choose r tokens at random, and merge each into the most similar of the others: a baseline.

    All images of a batch merge the same tokens; each layer draws again.

    Cost: the similarities of r x (N - r) tokens, O(r N D). Source: the appendix of ToMe.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its layer, backend, prefix tokens and padding are read.
        seed: with the number of the layer, the seed of the permutation of the unprotected tokens,
            ``numpy.random.default_rng([seed, layer]).permutation(N - protected)``. The first r
            merge; padding, if there is any, merges before other tokens.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``seed`` is not an integer of at least 0.
    """
    backend, xp, front = context.backend, context.backend.xp, context.protected
    seed, count = whole_number(seed, "seed"), keys.shape[1] - front
    # Tracers may take the numbers of layers and tokens for symbols.
    layer, count = operator.index(context.layer), operator.index(count)
    permutation = backend.on_host(_permutation, seed, layer, count)
    order = each_sample(backend, keys, permutation) + front
    if context.valid is not None:
        padding = xp.take_along_axis(1 - xp.astype(context.valid, xp.float32), order, axis=1)
        places = xp.argsort(padding, axis=1, descending=True, stable=True)
        order = xp.take_along_axis(order, places, axis=1)
    gone, kept = order[:, :r], xp.sort(order[:, r:], axis=1)
    targets, _ = nearest(context, unit_keys(backend, keys), gone, kept)
    return build_plan(context, kept, gone, targets)


def _permutation(seed: int, layer: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, layer]).permutation(count)
