"""Choose the tokens to merge: keys in, :class:`tomecore.MergePlan` out; one file for each algorithm.

To add one: take keys (B, N, D) and return a plan. Gather with index arrays (a strided slice is a slow
copy in Paddle and a recompilation in torch), use stable sorts, and never read the batch size.
"""

from __future__ import annotations

from tomecore.matching.bipartite import bipartite_soft_matching
from tomecore.matching.kth import kth_bipartite_soft_matching
from tomecore.matching.random import random_bipartite_soft_matching
from tomecore.matching.trials import add_trials

__all__ = [
    "bipartite_soft_matching",
    "kth_bipartite_soft_matching",
    "random_bipartite_soft_matching",
]

add_trials()
