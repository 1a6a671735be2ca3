"""Compute the time of a schedule from forward passes that were timed: block times and the cost of a merge.

Whole forward passes are timed, because blocks by themselves run without their neighbours. Two schedules that
differ in one thing show its cost: merging one token in every layer, against none, shows the cost of a merge;
merging early, against none, shows the time of a block with fewer tokens. Losses are not part of it.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tomecore.schedule.arithmetic import Arithmetic
from tomecore.schedule.rules import clamp_schedule

__all__ = ["ROUNDS", "BlockTimes", "block_times", "medians", "time_in_turn", "timed_schedules"]

#: rounds of timing; the medians over rounds count
ROUNDS = 7
#: numbers of tokens whose block times are measured, besides that without merging
LEVELS = 7


@dataclass(frozen=True)
class BlockTimes:
    """Times of this model on this device, at this batch size, in seconds.

    Args:
        arithmetic: the multiply-adds of the model: the share of a block that runs before its merge.
        counts: numbers of tokens, falling.
        saved: for each of them, how much less time a block takes than without merging.
        merge: seconds that one merge takes, without what it saves; at the first and at the last count.
        unmerged: seconds of a forward pass without merging.
    """

    arithmetic: Arithmetic
    counts: tuple[int, ...]
    saved: tuple[float, ...]
    merge: tuple[float, float]
    unmerged: float

    def seconds(self, r: list[int]) -> float:
        """Return the seconds of a forward pass with ``r``."""
        tokens, total = self.counts[0], self.unmerged - self.spared(r)
        for merged in clamp_schedule(r, tokens, self.arithmetic.protected):
            total += self.merging(tokens) if merged else 0.0
            tokens -= merged
        return total

    def spared(self, r: list[int]) -> float:
        """Return the seconds that blocks save because of fewer tokens, without the cost of merging."""
        tokens, total = self.counts[0], 0.0
        for layer, merged in enumerate(clamp_schedule(r, tokens, self.arithmetic.protected)):
            share = share_before(self.arithmetic, layer, tokens)
            total += share * self.saving(tokens) + (1 - share) * self.saving(tokens - merged)
            tokens -= merged
        return total

    def saving(self, tokens: int) -> float:
        """Return how much less time a block of ``tokens`` takes, on a line between two counts."""
        return on_line(tokens, list(zip(self.counts, self.saved, strict=True)))

    def merging(self, tokens: int) -> float:
        """Return the seconds of a merge of ``tokens``."""
        ends = (self.counts[0], self.counts[-1])
        return max(0.0, on_line(tokens, list(zip(ends, self.merge, strict=True))))


def share_before(arithmetic: Arithmetic, layer: int, tokens: int) -> float:
    """Return the share of the multiply-adds of a block that come before its merge."""
    block = arithmetic.layers[layer]
    return block.multiply_adds(tokens, 0) / max(1, block.multiply_adds(tokens, tokens))


def on_line(at: int, points: list[tuple[int, float]]) -> float:
    """Return the value at ``at`` of the line through points with falling positions; flat below the last."""
    for (above, high), (below, low) in itertools.pairwise(points):
        if at >= below and above > below:
            return low + (high - low) * (at - below) / (above - below)
    return points[-1][1]


def time_in_turn(
    run: Callable[[list[int]], Any], schedules: list[list[int]], rounds: int = ROUNDS
) -> Iterator[list[float]]:
    """Yield the seconds of one forward pass with each schedule, round by round, after one warm-up.

    Each round begins with another schedule. ``run`` must wait for the device.
    """
    for r in schedules:
        run(r)
    for number in range(rounds):
        found = [0.0] * len(schedules)
        for place in range(len(schedules)):
            index = (number + place) % len(schedules)
            start = time.perf_counter()
            run(schedules[index])
            found[index] = time.perf_counter() - start
        yield found


def timed_schedules(num_layers: int, num_tokens: int, protected: int) -> list[list[int]]:
    """Return the schedules that are timed: none, one token in every layer, then fewer and fewer tokens.

    Those that leave fewer tokens merge as much as they can in the first layers, until they have the number.
    The last one merges one more token in each of the other layers.
    """
    free = num_tokens - protected
    found = [[0] * num_layers, [1] * num_layers]
    for level in range(1, LEVELS + 1):
        target = round(free * 0.5 ** (level / 2))
        left: int = free
        listed: list[int] = []
        while left > target and len(listed) < num_layers - 1:
            merged = min(left // 2, left - target)
            listed.append(merged)
            left -= merged
        padded = listed + [0] * (num_layers - len(listed))
        if left == target >= num_layers and padded not in found:
            found.append(padded)
    last = found[-1]
    return found if len(found) == 2 else [*found, [one or 1 for one in last]]


def block_times(
    arithmetic: Arithmetic, num_tokens: int, schedules: list[list[int]], seconds: list[float]
) -> BlockTimes:
    """Return the times that explain ``seconds``, one for each schedule of :func:`timed_schedules`."""
    none, ones = seconds[:2]
    merge = 0.0
    for _ in range(5):  # merging one token in every layer saves a little, too: correct for it
        found = _with_merge(arithmetic, num_tokens, schedules, seconds, merge)
        merge = max(0.0, (ones - none + found.spared(schedules[1])) / len(schedules[1]))
    if len(schedules) == 2:
        return found
    *_, before, last = schedules
    more = seconds[-1] - seconds[-2] + found.spared(last) - found.spared(before)
    at_the_end = max(0.0, more / (len(before) - sum(map(bool, before))))
    return replace(found, merge=(merge, at_the_end))


def _with_merge(
    arithmetic: Arithmetic,
    num_tokens: int,
    schedules: list[list[int]],
    seconds: list[float],
    merge: float,
) -> BlockTimes:
    """Return the times that explain ``seconds`` if a merge takes ``merge`` seconds."""
    found = BlockTimes(arithmetic, (num_tokens,), (0.0,), (merge, merge), seconds[0])
    for r, taken in zip(schedules[2:-1], seconds[2:-1], strict=True):
        left = num_tokens - sum(r)
        rest, weight, tokens = seconds[0] - taken, 0.0, num_tokens
        for layer, merged in enumerate(r):
            share = share_before(arithmetic, layer, tokens)
            rest += merge if merged else 0.0
            for part, there in ((share, tokens), (1 - share, tokens - merged)):
                if there == left:
                    weight += part
                else:
                    rest -= part * found.saving(there)
            tokens -= merged
        saved = max(found.saved[-1], rest / weight)
        found = replace(found, counts=(*found.counts, left), saved=(*found.saved, saved))
    return found


def medians(rounds: list[list[float]]) -> list[float]:
    """Return the median seconds of each schedule."""
    return [statistics.median(one) for one in zip(*rounds, strict=True)]
