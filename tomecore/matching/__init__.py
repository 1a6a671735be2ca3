"""Choose the tokens to merge: keys in, :class:`tomecore.MergePlan` out; one file for each algorithm.

A matching is a function (keys (B, N, D), r, context) -> MergePlan that keeps N - r tokens, the prefix tokens
first. Pass it, or its name, to ``apply_patch(model, matching=...)``. If you write one, gather with index
arrays (a strided slice is a slow copy in Paddle and causes recompilation in torch), use stable sorts, and
never read the batch size or a value on the host.
:mod:`tomecore.matching.partitions` computes partitions for :func:`tomecore.partition_matching`.
"""

from __future__ import annotations

from tomecore.matching import partitions
from tomecore.matching.bidirectional import bidirectional
from tomecore.matching.bipartite import bipartite_soft_matching, tome
from tomecore.matching.context import Context, Matching
from tomecore.matching.diffrate import diffrate
from tomecore.matching.drop_similar import drop_similar
from tomecore.matching.evit import evit
from tomecore.matching.kth import kth, kth_bipartite_soft_matching
from tomecore.matching.partition import partition_matching
from tomecore.matching.pitome import pitome
from tomecore.matching.ppt import ppt
from tomecore.matching.random import random, random_bipartite_soft_matching
from tomecore.matching.registry import find, name_of, names, needs, needs_of, register
from tomecore.matching.tofu import tofu
from tomecore.matching.tome_cis import tome_cis
from tomecore.matching.trials import add_trials

__all__ = [
    "Context",
    "Matching",
    "bidirectional",
    "bipartite_soft_matching",
    "diffrate",
    "drop_similar",
    "evit",
    "find",
    "kth",
    "kth_bipartite_soft_matching",
    "name_of",
    "names",
    "needs",
    "needs_of",
    "partition_matching",
    "partitions",
    "pitome",
    "ppt",
    "random",
    "random_bipartite_soft_matching",
    "register",
    "tofu",
    "tome",
    "tome_cis",
]

register("tome", tome)
register("bidirectional", bidirectional)
register("tome_cis", tome_cis)
register("diffrate", diffrate)
register("evit", evit)
register("pitome", pitome)
register("tofu", tofu)
register("ppt", ppt)
register("kth", kth)
register("random", random)
register("drop_similar", drop_similar)

add_trials()
