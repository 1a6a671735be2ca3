"""Search for a schedule on unlabelled images: one that loses less than the rule, or runs faster.

    model.r = schedule.search(model, images, 2.0)

Candidates are compared on one half of the images, and only the best one is compared with the rule on the
other half. It is returned only if it wins there too: a schedule that was chosen on some images often loses on
others.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomecore.core.checks import check_writable, whole_number
from tomecore.errors import ArgumentValueError
from tomecore.frameworks import evaluating, to_numpy
from tomecore.schedule.arithmetic import Arithmetic
from tomecore.schedule.losses import CHOOSING, HELD_BACK, Losses, Read, batches_of
from tomecore.schedule.measured import (
    ROUNDS,
    BlockTimes,
    block_times,
    medians,
    time_in_turn,
    timed_schedules,
)
from tomecore.schedule.rules import RULES, for_speedup, handle_of, real_speedup
from tomecore.schedule.saved import Tuned, matching_of

__all__ = ["Found", "Progress", "search", "tune"]

#: called with the steps done, how many there are at most, and what is done next
Progress = Callable[[int, int, str], None]

COSTS = ("arithmetic", "measured")
#: at most this many passes over half of the images, unless the caller sets it
PASSES = 40
#: passes of the smallest search: two unpatched ones, the rule and one candidate on both halves
LEAST = 6
#: layers between which the shares of a candidate are interpolated
KNOTS = 5
#: factors by which the share that merges at a knot is changed, first coarse, then fine
FACTORS = (1.6, 1.25)
#: a schedule must be faster than the rule by this factor, in time that was computed, to be tried
FASTER = 0.98
#: shares of the layers that a fast schedule merges in, and distances between them
PARTS, STRIDES = (1.0, 2 / 3, 0.5, 1 / 3), (1, 2, 3)
#: factors from one merging layer to the next of a fast schedule
DECAYS = (1.0, 0.8)
#: losses below this are rounding
ROUNDING = 5e-7
#: added to a loss before its logarithm is taken, so that images that lose nothing do not decide
LITTLE = 1e-6

#: with fewer images held back than this, a standard error means little
ENOUGH = 8

log = logging.getLogger("tomecore.schedule")


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Args:
        schedule: the schedule to use.
        better: whether it is another one than that of the rule.
        rule: tokens that each layer merges according to the rule.
        loss: mean of 1 - cosine on the images held back, with ``schedule``.
        rule_loss: the same, with the rule.
        difference: mean of the paired differences, best candidate minus rule, on the images held back; None
            if no candidate was better on the other half.
        error: standard error of ``difference``.
        candidate: the best candidate of the first half; None as above.
        faster: seconds of the rule over seconds of the candidate, timed in turn; None with the cost
            "arithmetic", or without a candidate.
        images: number of images held back.
        passes: passes over half of the images, with and without merging.
        seconds: time of the search, without what was resumed.
        says: the result in a sentence.
    """

    schedule: Tuned
    better: bool
    rule: list[int]
    loss: float
    rule_loss: float
    difference: float | None
    error: float | None
    candidate: list[int] | None
    faster: float | None
    images: int
    passes: int
    seconds: float
    says: str

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a file for :func:`tomecore.schedule.load`."""
        numbers = {name: value for name, value in vars(self).items() if name != "schedule"}
        return {**self.schedule.as_dict(), "search": numbers}


def search(
    model: Any,
    images: Any,
    speedup: float,
    *,
    read: Read | None = None,
    cost: str = "arithmetic",
    batch: int | None = None,
    passes: int = PASSES,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """Return the tokens that each layer merges, found on unlabelled images for what you read from the model.

    Half of the images are held back. A schedule that is better on the others is returned only if it is
    better on these as well, by more than its standard error. Otherwise the schedule of the default rule of
    :func:`for_speedup` is returned, and the logger ``tomecore.schedule`` says so. The result depends on the
    images only, not on chance; with ``cost="measured"`` also on the times.

    Args:
        model: a patched model. Its r is restored afterwards, also after an error.
        images: floating-point (B, C, H, W), prepared for the model, or a list of such arrays, of any library.
            32 to 64 images are advised, at least 4 are needed; no labels.
        speedup: the arithmetic speed-up that the schedule reaches, at least 1; see :func:`for_speedup`.
        read: what is compared with the unpatched model, by its cosine for each image: a function
            (model, images) -> array with the batch first. None: the first array in the model's output.
        cost: "arithmetic": the schedule that loses least, of those that need as many multiply-adds.
            "measured": the fastest one on this device at this batch size, of those that lose no more than
            the rule; block times and the cost of a merge are measured first. The machine must be idle.
        batch: images per forward pass. None: as many as the first array has, at most 16.
        passes: at most this many passes over half of the images.
        resume: a JSON file for what was measured, written after every pass. What it holds already is not
            measured again, so an interrupted search continues.
        progress: called with (steps done, steps at most, text).

    Returns:
        One int for each layer. Their arithmetic speed-up is at least ``speedup``.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: labels among ``images``, or ``read`` returns no array.
        ArgumentValueError: an unknown ``cost``, no image, too few images to hold half of them back, ``read``
            returns NaN or another batch, a speed-up out of reach, or ``resume`` belongs to another search.
    """
    settings: dict[str, Any] = {"read": read, "cost": cost, "batch": batch, "passes": passes}
    found = tune(model, images, speedup, **settings, resume=resume, progress=progress)
    log.log(logging.INFO if found.better else logging.WARNING, found.says)
    return list(found.schedule.r)


def tune(
    model: Any,
    images: Any,
    speedup: float,
    *,
    read: Read | None = None,
    cost: str = "arithmetic",
    batch: int | None = None,
    passes: int = PASSES,
    resume: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Found:
    """Search as :func:`search` does, with the same arguments and errors; return all numbers of the search."""
    handle = handle_of(model)
    wanted = real_speedup(speedup)
    if cost not in COSTS:
        raise ArgumentValueError(f"`cost` must be {' or '.join(map(repr, COSTS))}; got {cost!r}")
    most = whole_number(passes, "passes", at_least=LEAST)
    record = None if resume is None else Path(resume)
    if record is not None:
        check_writable(record, "resume")
    rule = for_speedup(model, wanted)
    before = handle.r
    start = time.perf_counter()
    try:
        found, size = batches_of(images, batch)
        report = progress or (lambda done, total, text: None)
        report(0, most, "the unpatched model")
        losses = Losses(model, found, read, size, record)
        arithmetic, tokens = handle.arithmetic, losses.num_tokens
        base = rule(len(arithmetic.layers), tokens, arithmetic.protected)
        space = Space(arithmetic, tokens, wanted)
        trial = Trial(losses, base, most, report)
        if sum(base) and max(trial.measure(base, CHOOSING)) < ROUNDING:
            raise ArgumentValueError(
                "`read` returned the same with and without merging, so it cannot compare schedules. Read "
                "something that comes from the merged tokens, through the model that is passed to `read`"
            )
        if cost == "arithmetic":
            candidate = least_loss(space, trial)
        else:
            candidate = fastest(space, trial, measured_times(losses, arithmetic, report))
        return judge(space, trial, candidate, cost, start)
    finally:
        model.r = before


class Space:
    """The schedules that a search considers: each reaches the speed-up with the fewest merges of its shape.

    Args:
        arithmetic: the multiply-adds of the model.
        num_tokens: tokens that enter the first layer.
        speedup: the arithmetic speed-up to reach.
    """

    def __init__(self, arithmetic: Arithmetic, num_tokens: int, speedup: float) -> None:
        self.arithmetic, self.num_tokens, self.speedup = arithmetic, num_tokens, speedup
        self.num_layers = len(arithmetic.layers)
        self._before = arithmetic.unpatched.multiply_adds(num_tokens, 0)

    def limit(self, r: list[int]) -> float:
        """Return the arithmetic speed-up of a schedule."""
        return self._before / self.arithmetic.multiply_adds(self.num_tokens, r)

    def of_shape(self, shape: list[float]) -> list[int] | None:
        """Return the schedule whose layers merge shares of their tokens in the proportions of ``shape``.

        A layer merges at most half. None: this shape cannot reach the speed-up.
        """

        def scaled(level: float) -> list[int]:
            free = max(0, self.num_tokens - self.arithmetic.protected)
            merged = []
            for part in shape:
                kept = int((1 - min(0.5, level * part)) * free + 0.5)
                merged.append(free - kept)
                free = kept
            return merged

        def reaches(r: list[int]) -> bool:
            return self._before >= self.speedup * self.arithmetic.of_merged(self.num_tokens, r)

        low, high = 0.0, 0.5 / min(one for one in shape if one > 0)
        if not reaches(scaled(high)):
            return None
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if reaches(scaled(middle)) else (middle, high)
        return scaled(high)

    def of_knots(self, knots: list[float], used: list[float] | None = None) -> list[int] | None:
        """Return the schedule of shares with logarithms on lines between ``knots``, in ``used`` layers."""
        shape = []
        for layer in range(self.num_layers):
            at = layer * (len(knots) - 1) / max(1, self.num_layers - 1)
            left = min(int(at), len(knots) - 2)
            shape.append(math.exp(knots[left] + (at - left) * (knots[left + 1] - knots[left])))
        if used is not None:
            shape = [one * part for one, part in zip(shape, used, strict=True)]
        return self.of_shape(shape)

    def few_merges(self) -> Iterator[list[float]]:
        """Yield shapes that merge in few layers, from the first on; sparing the first layers loses most."""
        for part, stride, decay in itertools.product(PARTS, STRIDES, DECAYS):
            until = math.ceil(part * self.num_layers)
            yield [
                decay ** (layer // stride) if layer < until and layer % stride == 0 else 0.0
                for layer in range(self.num_layers)
            ]


class Trial:
    """Comparisons with the rule on the images that choose, with a limited number of passes.

    Args:
        losses: the losses on the images.
        rule: the schedule of the rule.
        most: at most this many passes over half of the images, those of the unpatched model included.
        report: called with (steps done, steps at most, text).
    """

    def __init__(self, losses: Losses, rule: list[int], most: int, report: Progress) -> None:
        self.losses, self.rule, self.most, self.report = losses, rule, most, report
        self._made: set[tuple[str, tuple[int, ...]]] = set()

    @property
    def passes(self) -> int:
        """Passes over half of the images, with those of the unpatched model and those that were resumed."""
        return 2 + len(self._made)

    @property
    def over(self) -> bool:
        """Whether only the two passes over the images held back are left."""
        return self.passes >= self.most - 2

    def tried(self, r: list[int]) -> bool:
        """Whether the loss of ``r`` is known on the images that choose."""
        return (CHOOSING, tuple(r)) in self._made

    def worse(self, r: list[int], than: list[int]) -> tuple[float, float]:
        """Return the mean logarithm of the loss of ``r`` over that of another one, and its standard error.

        Below 0, ``r`` loses less. A mean of logarithms is not decided by the few images that lose most.
        """
        found, base = self.measure(r, CHOOSING), self.measure(than, CHOOSING)
        logs = [
            math.log((one + LITTLE) / (other + LITTLE))
            for one, other in zip(found, base, strict=True)
        ]
        return statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))

    def measure(self, r: list[int], half: str) -> list[float]:
        """Return the losses of ``r`` on a half."""
        key = (half, tuple(r))
        if key not in self._made:
            self.report(self.passes, self.most, f"images {half}: r = {r}")
            self._made.add(key)
        return self.losses(r, half)


def least_loss(space: Space, trial: Trial) -> list[int] | None:
    """Return the schedule that loses least on the images that choose; None: that of the rule."""
    return descend(space, trial, trial.rule, None)


def descend(
    space: Space, trial: Trial, first: list[int], used: list[float] | None
) -> list[int] | None:
    """Change the share at one knot at a time, as long as this loses less; None if nothing does.

    A change counts only if it is larger than its standard error: most smaller ones are chance.

    Args:
        space: the schedules.
        trial: the comparisons.
        first: the schedule of equal knots.
        used: which layers merge, and their shares; None: all.
    """
    count = min(KNOTS, max(2, space.num_layers))
    knots, best = [0.0] * count, first
    for factor in FACTORS:
        improved = True
        while improved:
            improved = False
            for knot, sign in itertools.product(range(count), (1, -1)):
                moved = list(knots)
                moved[knot] += sign * math.log(factor)
                r = space.of_knots(moved, used)
                if r is None or trial.tried(r):
                    continue
                if trial.over:
                    return None if best == first else best
                mean, error = trial.worse(r, best)
                if mean < -error:
                    knots, best, improved = moved, r, True
    return None if best == first else best


def fastest(space: Space, trial: Trial, times: BlockTimes) -> list[int] | None:
    """Return the fastest schedule that loses no more than the rule on the images that choose, or None."""
    slow = times.seconds(trial.rule) * FASTER
    shapes: list[tuple[float, list[int], list[float]]] = []
    for shape in space.few_merges():
        r = space.of_shape(shape)
        if r is not None and times.seconds(r) < slow and r not in [one for _, one, _ in shapes]:
            shapes.append((times.seconds(r), r, shape))
    shapes.sort(key=lambda one: one[0])
    close = []
    for _, r, shape in shapes:
        if trial.over:
            return None
        worse, _ = trial.worse(r, trial.rule)
        if worse <= 0:
            return r
        close.append((worse, r, shape))
    for _, r, shape in sorted(close, key=lambda one: one[0]):
        found = descend(space, trial, r, shape)
        if found is None or times.seconds(found) >= slow:
            continue
        if trial.worse(found, trial.rule)[0] <= 0:
            return found
    return None


def measured_times(losses: Losses, arithmetic: Arithmetic, report: Progress) -> BlockTimes:
    """Return the times of this model, device and batch size; those of a resumed search are taken over."""
    schedules = timed_schedules(len(arithmetic.layers), losses.num_tokens, arithmetic.protected)
    name = f"batch {losses.batch}"
    if name not in losses.times:
        rounds = []
        for one in time_in_turn(runner(losses), schedules):
            rounds.append(one)
            report(len(rounds), ROUNDS, "block times and the cost of a merge")
        losses.times[name] = medians(rounds)
        losses.save()
    return block_times(arithmetic, losses.num_tokens, schedules, losses.times[name])


def runner(losses: Losses) -> Callable[[list[int]], Any]:
    """Return a function that runs a forward pass with r, and waits until its output is on the host."""
    images = losses.inputs()

    def run(r: list[int]) -> None:
        losses.model.r = r
        with evaluating(losses.model):
            to_numpy(losses.read(losses.model, images))

    return run


def judge(
    space: Space, trial: Trial, candidate: list[int] | None, cost: str, start: float
) -> Found:
    """Compare the candidate with the rule on the images held back, and return the result."""
    rule, losses, name = trial.rule, trial.losses, RULES[0]
    base = trial.measure(rule, HELD_BACK)
    count, difference, error, faster = len(base), None, None, None
    better, chosen, loss = False, rule, statistics.fmean(base)
    says = f"No schedule was better than the rule {name!r} on the images of the search"
    if candidate is not None:
        found = trial.measure(candidate, HELD_BACK)
        pairs = [one - other for one, other in zip(found, base, strict=True)]
        difference = statistics.fmean(pairs)
        error = statistics.stdev(pairs) / math.sqrt(count)
        against = (
            f"on the {count} images held back, its loss (1 - cosine) differs from that of the rule "
            f"{name!r} by {difference:+.2g} ± {error:.1g}"
        )
        if cost == "measured":
            ratios = [a / b for a, b in time_in_turn(runner(losses), [rule, candidate], 3 * ROUNDS)]
            low, faster, _ = statistics.quantiles(ratios, n=4)
            against += f", and it is {faster:.3f} times as fast"
            better = difference <= 0 and low > 1
        else:
            better = difference < -error
        if better:
            chosen, loss = candidate, statistics.fmean(found)
            says = f"Found a schedule: {against}"
        else:
            says = f"Found no better schedule: {against}"
    if not better:
        says += f"; the result is the schedule of {name!r}"
    if count < ENOUGH:
        says += f". {count} images held back are too few to rely on: use 32 to 64 images"
    return Found(
        schedule=Tuned(
            tuple(chosen),
            losses.num_tokens,
            space.limit(chosen),
            matching_of(losses.handle),
            space.arithmetic.unpatched.multiply_adds(losses.num_tokens, 0),
        ),
        better=better,
        rule=rule,
        loss=loss,
        rule_loss=statistics.fmean(base),
        difference=difference,
        error=error,
        candidate=candidate,
        faster=faster,
        images=count,
        passes=trial.passes,
        seconds=time.perf_counter() - start,
        says=f"{says}.",
    )
