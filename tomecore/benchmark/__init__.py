"""What merging can give at most, what it gives, and what it costs.

Two limits frame every measurement. The arithmetic limit (``schedule/arithmetic.py``) counts multiplications
of the model's own layers. The free-drop limit is measured: the same model in the same run whose blocks drop
r tokens by a slice, without matching, merging or bias; it is what the machine can really give. The merge
tax is the time of merging over the time of free-drop. Everything is timed interleaved, because machines
drift.
"""

from tomecore.benchmark._forms import free_drop
from tomecore.benchmark._machine import machine
from tomecore.benchmark._measure import Measurement, measure
from tomecore.benchmark._plot import draw
from tomecore.benchmark._profile import Profile, profile
from tomecore.benchmark._timing import interleave, median_ratio, quartiles

__all__ = [
    "Measurement",
    "Profile",
    "draw",
    "free_drop",
    "interleave",
    "machine",
    "measure",
    "median_ratio",
    "profile",
    "quartiles",
]
