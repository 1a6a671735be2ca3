"""Every algorithm on small arrays, for ``tomecore.backends.check``.

They use no check of arguments that looks up the backend of an array: the one under check need not be
registered.
"""

from __future__ import annotations

import numpy as np

from tomecore.backends import Array, Backend, Sizes, TokenKeys, Tokens
from tomecore.backends.conformance import add_trial
from tomecore.core.mean import weighted_mean
from tomecore.core.plan import MergePlan, reduce_tokens, take_rows
from tomecore.matching.bipartite import bipartite_soft_matching
from tomecore.matching.context import Context
from tomecore.matching.kth import kth_bipartite_soft_matching
from tomecore.matching.partition import partition_matching
from tomecore.matching.random import random_bipartite_soft_matching
from tomecore.matching.registry import find, names

__all__ = ["add_trials"]


#: tomecore's own matchings, which are registered before this runs
OWN: list[str] = []


def bipartite(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    """Match with prefix tokens, without them, with r = 0 and with padding."""
    plans = [
        bipartite_soft_matching(keys, r, protected=protected, backend=backend)
        for r, protected in ((4, 1), (3, 0), (0, 0))
    ]
    plans.append(bipartite_soft_matching(keys, 4, valid=sizes > 1, backend=backend))
    return tuple(array for plan in plans for array in (plan.kept, plan.merged, plan.slots))


def kth(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    plans = [
        kth_bipartite_soft_matching(keys, 3, protected=protected, backend=backend)
        for protected in (0, 1)
    ]
    return tuple(plan.slots for plan in plans)


def random(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    plans = [
        random_bipartite_soft_matching(keys, 3, seed=1, protected=protected, backend=backend)
        for protected in (0, 1)
    ]
    return tuple(plan.slots for plan in plans)


def partition(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    """Match all sources, then r of them with different destinations in each sample, in chunks."""
    sources = np.asarray([9, 0, 3, 4, 8, 1])
    destinations = np.asarray([[7, 2, 5], [5, 10, 2]])
    plans = [
        partition_matching(keys, sources, numbers, r, chunk=4, backend=backend)
        for r, numbers in ((None, destinations[0]), (3, destinations))
    ]
    return tuple(array for plan in plans for array in (plan.kept, plan.merged, plan.slots))


def merging(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    """Merge by each reduction, unmerge, and follow tokens."""
    plan = plan_of(backend, keys)
    reduced = [reduce_tokens(plan, x, how) for how in ("mean", "sum", "max")]
    unmerged = take_rows(backend, reduced[0], plan.slots)
    source = backend.xp.take_along_axis(plan.slots, plan.slots[:, :7], axis=1)
    return (*reduced, unmerged, source)


def weighing(backend: Backend, keys: TokenKeys, x: Tokens, sizes: Sizes) -> tuple[Array, ...]:
    """Compute the weighted mean without sizes, with sizes and with padding."""
    plan = plan_of(backend, keys)
    padded = sizes * backend.xp.astype(sizes > 1, sizes.dtype)
    means = [weighted_mean(plan, x, given) for given in (None, sizes, padded)]
    return tuple(array for mean in means for array in mean)


def plan_of(backend: Backend, keys: TokenKeys) -> MergePlan:
    return bipartite_soft_matching(keys, 4, protected=1, backend=backend)


class _Given(Context):
    """A context whose attention and values are computed from its tokens."""

    def class_attention(self) -> Array:
        xp, width = self.backend.xp, self.x.shape[2]
        return xp.sum(self.x * self.x, axis=2) / width

    def values(self) -> Array:
        xp = self.backend.xp
        return xp.concat([self.x[:, None, :, :], 0.5 * self.x[:, None, :, :]], axis=1)


def methods(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    """Run every matching of tomecore, with padding and without."""
    found = []
    for valid in (None, sizes > 1):
        for matching in (find(name) for name in OWN):
            context = _Given(x, protected=1, valid=valid, layer=1, num_layers=3, backend=backend)
            plan = matching(keys, 4, context)
            found += [plan.slots, *weighted_mean(plan, x, sizes)]
    return tuple(found)


def add_trials() -> None:
    """Pass every trial to ``backends.check``."""
    OWN.extend(names())
    add_trial("bipartite_soft_matching(keys, r)", bipartite)
    add_trial("kth_bipartite_soft_matching(keys, k)", kth)
    add_trial("random_bipartite_soft_matching(keys, r)", random)
    add_trial("partition_matching(keys, sources, destinations)", partition)
    add_trial("tomecore.matching", methods)
    add_trial("MergePlan.merge(x)", merging)
    add_trial("merge_weighted(plan, x, size)", weighing)
