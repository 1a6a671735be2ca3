"""Where the time between merging and free-drop goes, part by part."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tomecore.adapters.engine import block as _block
from tomecore.adapters.engine import reduce as _reduce
from tomecore.adapters.engine import state as _state
from tomecore.adapters.engine.host import PropAttn
from tomecore.benchmark._devices import Place, place_of
from tomecore.benchmark._forms import config_of_patched, free_drop
from tomecore.benchmark._timing import interleave
from tomecore.loading import Loaded, adapter_of
from tomecore.schedule import R

__all__ = ["Profile", "profile"]

#: (module or class, function, what its time is called)
_PARTS = (
    (_reduce, "in_one_go", "match and merge in one go"),
    (_reduce, "matching_key", "keys: sum over heads"),
    (_reduce, "matched", "matching"),
    (_reduce, "merged_mean", "merging"),
    (_block, "key_bias", "log of sizes"),
    (_state.Trail, "source", "following tokens"),
    (_block, "take_rows", "restore"),
)
_BIAS, _REST = "attention with a bias", "everything else"


@dataclass(frozen=True)
class Profile:
    """Seconds of one forward pass.

    Args:
        merging: the patched model.
        dropping: the same model that drops tokens instead.
        parts: what merging spends, by name. "everything else" is what is left of the difference: calls,
            memory moved twice, noise; it can be negative, because merged tokens lie together in memory and
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
) -> Profile:
    """Split the time of merging over free-drop into parts; arguments as for :func:`measure`.

    The parts are read from a clock around tomecore's own functions in passes of their own, waiting for the
    device before and after each, and the cost of a biased attention is the difference to a model with
    ``prop_attn=False``.
    """
    place = place_of(loaded.model, device, dtype)
    patch = adapter_of(place.framework).apply_patch
    unpatched = place.put(copy.deepcopy(loaded.model))
    settings: dict[str, Any] = {"r": r, "trim_last": trim_last}
    merging = patch(copy.deepcopy(unpatched), **settings, prop_attn=prop_attn)
    unbiased = patch(copy.deepcopy(unpatched), **settings, prop_attn=False)
    dropping = free_drop(patch(copy.deepcopy(unpatched), **settings))
    x = place.images(batch, loaded.input_shape)
    calls: dict[str, Callable[[], Any]] = {
        "merging": lambda: merging(x),
        "unbiased": lambda: unbiased(x),
        "dropping": lambda: dropping(x),
    }
    with place.evaluating():
        timed = list(interleave(calls, rounds, wait=place.wait))
        clocked = [_clocked(place, calls["merging"]) for _ in range(rounds)]
    median = {name: statistics.median(seconds[name] for seconds in timed) for name in calls}
    parts = {name: statistics.median(one[name] for one in clocked) for name in clocked[0]}
    biased = median["merging"] - median["unbiased"] - parts["log of sizes"]
    parts[_BIAS] = biased if config_of_patched(merging).prop_attn else 0.0
    parts[_REST] = median["merging"] - median["dropping"] - sum(parts.values())
    return Profile(median["merging"], median["dropping"], parts)


def _clocked(place: Place, call: Callable[[], Any]) -> dict[str, float]:
    """Seconds by part of one pass."""
    seconds = dict.fromkeys([name for _, _, name in _PARTS], 0.0)
    with _watched(place, seconds):
        call()
    return seconds


@contextlib.contextmanager
def _watched(place: Place, seconds: dict[str, float]) -> Iterator[None]:
    """Within this context the functions of ``_PARTS`` note how long they take."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _PARTS]
    try:
        for owner, name, part in _PARTS:
            setattr(owner, name, _timed(place, getattr(owner, name), seconds, part))
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def _timed(
    place: Place, function: Callable[..., Any], seconds: dict[str, float], name: str
) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        place.wait()
        start = time.perf_counter()
        found = function(*args, **kwargs)
        place.wait()
        seconds[name] += time.perf_counter() - start
        return found

    return timed
