"""Keep every k-th token: the first alternative in the appendix of ToMe (Bolya et al., ICLR 2023)."""

from __future__ import annotations

import numpy as np

from tomecore.backends import Array, Backend, backend_of
from tomecore.core.checks import floating, rank, whole_number
from tomecore.core.plan import MergePlan
from tomecore.matching.similarity import asarray_like, best_partner, identity_plan, token_numbers

__all__ = ["kth_bipartite_soft_matching"]


def kth_bipartite_soft_matching(
    keys: Array, /, k: int, *, backend: Backend | None = None
) -> MergePlan:
    """Keep every k-th token, and merge each of the others into the kept token most similar to it.

    Args:
        keys: (B, N, D) real floating point.
        k: tokens per group, 0 <= k; the last of each group is a destination. Nothing merges if
            k <= 1 or N < k.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan whose slots are the N // k destinations, then the N mod k tokens after the last whole
        group, which do not merge.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    k = whole_number(k, "k", unit="tokens")
    tokens = keys.shape[1]
    if k <= 1 or tokens < k:
        return identity_plan(backend, keys, tokens)

    groups = np.arange(tokens // k * k).reshape(-1, k)
    source = asarray_like(backend, keys, groups[:, :-1].reshape(-1))
    target = asarray_like(backend, keys, groups[:, -1])
    tail = token_numbers(backend, keys, groups.size, tokens)
    partner = best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    kept = backend.xp.concat([column + target, column + tail], axis=1)
    return MergePlan(kept, column + source, partner, backend=backend)
