"""Measure how fast a model is when it merges, and compare that with its limits.

    cell = measure(load("timm:vit_small_patch16_224"), r=16)
    cell.speedup, cell.limit, cell.drop_speedup
    profile(load("timm:vit_small_patch16_224"), r=16).parts       # where the rest of the time goes

Two limits frame every measurement. The arithmetic limit (``schedule/arithmetic.py``) counts the
multiplications of the model's own layers. The free-drop limit is measured: the same model in the same run
drops r tokens by a slice, without matching, merging or bias. It shows what the machine gains if merging
costs nothing; the extra time of merging is the merge tax. All forms are timed in turn, because machines
drift. ``tomecore bench`` does the same on the command line.
"""

from tomecore.benchmark._forms import free_drop
from tomecore.benchmark._machine import machine
from tomecore.benchmark._measure import Measurement, measure
from tomecore.benchmark._place import Place, peak_bytes, place_of
from tomecore.benchmark._plot import draw
from tomecore.benchmark._profile import Profile, profile
from tomecore.benchmark._timing import interleave, median_ratio, quartiles

__all__ = [
    "Measurement",
    "Place",
    "Profile",
    "draw",
    "free_drop",
    "interleave",
    "machine",
    "measure",
    "median_ratio",
    "peak_bytes",
    "place_of",
    "profile",
    "quartiles",
]
