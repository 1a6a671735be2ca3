"""Merge random tokens: the second alternative in the appendix of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import numpy as np

from tomecore.backends import Array, Backend, backend_of
from tomecore.core.checks import floating, rank, whole_number
from tomecore.core.plan import MergePlan
from tomecore.matching.similarity import asarray_like, best_partner, identity_plan

__all__ = ["random_bipartite_soft_matching"]


def random_bipartite_soft_matching(
    keys: Array, /, r: int, seed: int = 0, *, backend: Backend | None = None
) -> MergePlan:
    """Choose r tokens at random, and merge each into the most similar of the others: a baseline.

    Args:
        keys: (B, N, D) real floating point.
        r: tokens to merge, 0 <= r; capped at N - 1.
        seed: seed of the permutation of N tokens, which the whole batch shares. NumPy draws it
            (``numpy.random.default_rng(seed).permutation(N)``) for every library, so every backend
            chooses the same tokens: the first r merge, and the rest are kept in that order.
        backend: the keys' backend; inferred if left out.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    r = whole_number(r, "r", unit="tokens")
    seed = whole_number(seed, "seed")
    tokens = keys.shape[1]
    r = max(0, min(r, tokens - 1))
    if r == 0:
        return identity_plan(backend, keys, tokens)

    permutation = np.random.default_rng(seed).permutation(tokens)
    source = asarray_like(backend, keys, permutation[:r])
    target = asarray_like(backend, keys, permutation[r:])
    partner = best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    return MergePlan(column + target, column + source, partner, backend=backend)
