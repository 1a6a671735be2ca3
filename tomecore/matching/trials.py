"""Every algorithm on small arrays, for ``tomecore.backends.check``.

Without the checks of arguments, which look the backend of an array up: the one under check need not be
registered.
"""

from __future__ import annotations

from tomecore.backends import Array, Backend
from tomecore.backends.conformance import add_trial
from tomecore.core.mean import weighted_mean
from tomecore.core.plan import MergePlan, reduce_tokens, take_rows
from tomecore.matching.bipartite import bipartite_soft_matching
from tomecore.matching.kth import kth_bipartite_soft_matching
from tomecore.matching.random import random_bipartite_soft_matching

__all__ = ["add_trials"]


def bipartite(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    """With prefix tokens, without, with nothing to merge and with padding."""
    plans = [
        bipartite_soft_matching(keys, r, protected=protected, backend=backend)
        for r, protected in ((4, 1), (3, 0), (0, 0))
    ]
    plans.append(bipartite_soft_matching(keys, 4, valid=sizes > 1, backend=backend))
    return tuple(array for plan in plans for array in (plan.kept, plan.merged, plan.slots))


def kth(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    return (kth_bipartite_soft_matching(keys, 3, backend=backend).slots,)


def random(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    return (random_bipartite_soft_matching(keys, 3, seed=1, backend=backend).slots,)


def merging(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    """Merging in every way, unmerging, and following tokens."""
    plan = plan_of(backend, keys)
    reduced = [reduce_tokens(plan, x, how) for how in ("mean", "sum", "max")]
    unmerged = take_rows(backend, reduced[0], plan.slots)
    source = backend.xp.take_along_axis(plan.slots, plan.slots[:, :7], axis=1)
    return (*reduced, unmerged, source)


def weighing(backend: Backend, keys: Array, x: Array, sizes: Array) -> tuple[Array, ...]:
    """The mean by sizes, with padding and without sizes."""
    plan = plan_of(backend, keys)
    padded = sizes * backend.xp.astype(sizes > 1, sizes.dtype)
    means = [weighted_mean(plan, x, given) for given in (None, sizes, padded)]
    return tuple(array for mean in means for array in mean)


def plan_of(backend: Backend, keys: Array) -> MergePlan:
    return bipartite_soft_matching(keys, 4, protected=1, backend=backend)


def add_trials() -> None:
    """Pass every trial to ``backends.check``."""
    add_trial("bipartite_soft_matching(keys, r)", bipartite)
    add_trial("kth_bipartite_soft_matching(keys, k)", kth)
    add_trial("random_bipartite_soft_matching(keys, r)", random)
    add_trial("MergePlan.merge(x)", merging)
    add_trial("merge_weighted(plan, x, size)", weighing)
