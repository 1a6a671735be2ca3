"""Split the time between merging and free-drop into parts."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tomecore.adapters import PARTS, PropAttn
from tomecore.benchmark._forms import free_drop
from tomecore.benchmark._place import Place, place_of
from tomecore.benchmark._timing import interleave
from tomecore.loading import Loaded, adapter_of
from tomecore.matching import Matching
from tomecore.schedule import R

__all__ = ["Profile", "profile"]

#: the parts of merging, each counted once
_PARTS = tuple(part for part in PARTS if part != "all of the merge")
_BIAS, _REST = "attention with a bias", "everything else"


@dataclass(frozen=True)
class Profile:
    """Seconds of one forward pass.

    Args:
        merging: time of the patched model.
        dropping: time of the same model when it drops tokens instead.
        parts: time of each part of merging, by name. "everything else" is the rest of the difference: calls,
            memory moved twice, noise. It can be negative, because merged tokens lie together in memory and
            dropped ones do not.
    """

    merging: float
    dropping: float
    parts: dict[str, float]


def profile(
    loaded: Loaded,
    r: R,
    *,
    batch: int = 8,
    dtype: str = "float32",
    device: str = "cpu",
    rounds: int = 9,
    trim_last: bool = False,
    prop_attn: PropAttn | None = None,
    matching: str | Matching = "tome",
) -> Profile:
    """Split the time of merging over free-drop into parts; arguments as for :func:`measure`.

    The parts come from separate passes, with a clock around tomecore's own functions that waits for the
    device before and after each. The cost of biased attention is the difference from a model with
    ``prop_attn=False``.
    """
    place = place_of(loaded.model, device, dtype)
    patch = adapter_of(place.runtime.name).apply_patch
    unpatched = place.put(copy.deepcopy(loaded.model))
    settings: dict[str, Any] = {"r": r, "trim_last": trim_last, "matching": matching}
    merging = patch(copy.deepcopy(unpatched), **settings, prop_attn=prop_attn)
    unbiased = patch(copy.deepcopy(unpatched), **settings, prop_attn=False)
    dropping = free_drop(patch(copy.deepcopy(unpatched), **settings))
    x = place.images(batch, loaded.input_shape)
    calls: dict[str, Callable[[], Any]] = {
        "merging": lambda: merging(x),
        "unbiased": lambda: unbiased(x),
        "dropping": lambda: dropping(x),
    }
    with place.no_grad():
        timed = list(interleave(calls, rounds, wait=place.wait))
        clocked = [_clock(place, merging, x) for _ in range(rounds)]
    median = {name: statistics.median(seconds[name] for seconds in timed) for name in calls}
    parts = {name: statistics.median(one[name] for one in clocked) for name in clocked[0]}
    biased = median["merging"] - median["unbiased"] - parts["log of sizes"]
    parts[_BIAS] = biased if merging.tome.prop_attn else 0.0
    parts[_REST] = median["merging"] - median["dropping"] - sum(parts.values())
    return Profile(median["merging"], median["dropping"], parts)


def _clock(place: Place, model: Any, x: Any) -> dict[str, float]:
    """Return the seconds of one pass, by part."""
    with model.tome.timings(place.wait) as seconds:
        model(x)
    return {part: seconds[part] for part in _PARTS}
