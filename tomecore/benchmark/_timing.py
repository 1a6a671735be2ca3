"""Time calls in turn: machines drift, so only times measured side by side can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["interleave", "median_ratio", "quartiles"]


def _no_wait() -> None:
    return None


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    wait: Callable[[], None] = _no_wait,
    repeat: int = 1,
) -> Iterator[dict[str, float]]:
    """Time the calls in turn, ``rounds`` times after one warm-up; yield seconds per call by name.

    Each round begins with a different call, so that no call always follows the same one.

    Args:
        calls: functions to time, by name.
        rounds: number of rounds.
        wait: called before the clock is read; on a GPU it waits for the device.
        repeat: calls in a row between two readings of the clock.
    """
    for call in calls.values():
        call()
    names = list(calls)
    for number in range(rounds):
        seconds = {}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            call = calls[name]
            wait()
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            wait()
            seconds[name] = (time.perf_counter() - start) / repeat
        yield seconds


def median_ratio(rounds: list[dict[str, float]], over: str, under: str) -> float:
    """Return the median of ``over / under`` within each round, so that slow rounds cancel."""
    return statistics.median(seconds[over] / seconds[under] for seconds in rounds)


def quartiles(rounds: list[dict[str, float]], over: str, under: str) -> tuple[float, float]:
    """Return the first and third quartile of ``over / under`` within each round."""
    ratios = [seconds[over] / seconds[under] for seconds in rounds]
    if len(ratios) < 2:
        return ratios[0], ratios[0]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, high
