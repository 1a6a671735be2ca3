"""Compute schedules for a target: a share of the tokens, a number of tokens, a speed-up. Pure Python.

The first block calls them with the number of tokens; they return what each layer merges, which is never
more than it can. All numbers are Python ints and all loops are plain, so that traced and compiled models
can call them too. Public names are in :mod:`tomecore.schedule`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NotPatchedError

__all__ = ["ForSpeedup", "ForTokens", "Ratio", "clamp_schedule", "for_speedup", "for_tokens"]


@dataclass(frozen=True)
class Ratio:
    """Keep the same share of the unprotected tokens in every layer: ``model.r = Ratio(0.9)``.

    Args:
        ratio: the share to keep, from 0.5, where a layer merges as much as it can, to 1, where nothing
            merges. Of u tokens a layer keeps ``ratio * u``, rounded to the nearest integer, with halves
            rounded up. So a small number of tokens does not merge any further: ``Ratio(0.9)`` keeps all
            of 5 tokens.

    Raises:
        ArgumentTypeError: ``ratio`` is not a number.
        ArgumentValueError: ``ratio`` is below 0.5 or above 1.
    """

    ratio: float

    def __post_init__(self) -> None:
        ratio = real_number(self.ratio, "ratio")
        if not 0.5 <= ratio <= 1:
            raise ArgumentValueError(
                "`ratio`, the share of tokens that a layer keeps, must be from 0.5 to 1, because a "
                f"layer merges at most half of its tokens; got {self.ratio!r}"
            )
        object.__setattr__(self, "ratio", ratio)

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        free = max(0, num_tokens - protected)
        merged = []
        for _ in range(num_layers):
            kept = int(self.ratio * free + 0.5)
            merged.append(free - kept)
            free = kept
        return merged


@dataclass(frozen=True)
class ForTokens:
    """A schedule that ends with exactly ``last`` tokens; :func:`for_tokens` returns it.

    Args:
        last: tokens after the last layer, protected ones included.
    """

    last: int

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        last = self.last
        most = sum(maximal_schedule(num_layers, num_tokens, protected))
        if not num_tokens - most <= last <= num_tokens:
            raise ArgumentValueError(
                f"no schedule ends with {last} tokens: from {num_tokens} tokens, {protected} of them "
                f"protected, {num_layers} layers can reach at least {num_tokens - most} and at most "
                f"{num_tokens}. Use for_tokens(model, last=...) with a number from {num_tokens - most} to "
                f"{num_tokens}."
            )

        def satisfies(merged: list[int]) -> bool:
            return num_tokens - sum(merged) <= last

        return smallest_schedule(num_layers, num_tokens, protected, satisfies)


@dataclass(frozen=True)
class ForSpeedup:
    """A schedule for an arithmetic speed-up; :func:`for_speedup` returns it.

    Args:
        speedup: the arithmetic speed-up to reach, multiply-adds before over after.
        arithmetic: the multiply-adds of the model, a :class:`tomecore.schedule.arithmetic.Arithmetic`.
    """

    speedup: float
    arithmetic: Any = field(repr=False)

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        arithmetic = self.arithmetic
        known = (len(arithmetic.layers), arithmetic.protected)
        if (num_layers, protected) != known:
            raise ArgumentValueError(
                f"for_speedup computed this schedule for a model with {known[0]} layers and {known[1]} "
                f"protected tokens, but this model has {num_layers} layers and {protected} protected "
                "tokens; call for_speedup with this model"
            )
        most = arithmetic.limit(num_tokens, maximal_schedule(num_layers, num_tokens, protected))
        if most < self.speedup:
            largest = math.floor(100 * most) / 100
            raise ArgumentValueError(
                f"no schedule makes this model {self.speedup:g} times faster: with {num_tokens} tokens, and "
                f"every layer merging as many as it can, the arithmetic limit is {largest:.2f}. Use "
                f"for_speedup(model, speedup) with at most {largest:.2f}."
            )
        before = arithmetic.unpatched.multiply_adds(num_tokens, 0)

        def satisfies(merged: list[int]) -> bool:
            return bool(before >= self.speedup * arithmetic.multiply_adds(num_tokens, merged))

        return smallest_schedule(num_layers, num_tokens, protected, satisfies)


def for_tokens(model: Any, last: int) -> ForTokens:
    """Return a schedule that ends with exactly ``last`` tokens: ``model.r = for_tokens(model, last=98)``.

    Every layer merges the same number of tokens; if there is a remainder, the first layers merge one more.
    If the last layers cannot merge as many, the others merge more.

    Args:
        model: a patched model.
        last: tokens after the last layer, prefix tokens included.

    Returns:
        A schedule object. It does not hold the model, and can be set on other models.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``last`` is not an integer.
        ArgumentValueError: no schedule can reach ``last``. Raised at once if possible, otherwise in the
            first forward pass, when the number of tokens is known.
    """
    last = whole_number(last, "last", at_least=1)
    protected = handle_of(model).protected
    if last <= protected:
        raise ArgumentValueError(
            f"`last` must be at least {protected + 1}: {protected} tokens of this model never merge, and "
            f"at least one of the others is left; got {last}"
        )
    return ForTokens(last)


def for_speedup(model: Any, speedup: float) -> ForSpeedup:
    """Return a schedule for an arithmetic speed-up: ``model.r = for_speedup(model, 2.0)``.

    It merges the fewest tokens with which the model needs at most ``1 / speedup`` of its multiply-adds.
    Every layer merges the same number; if there is a remainder, the first layers merge one more. The
    measured speed-up depends on the machine, and is a little less.

    Args:
        model: a patched model.
        speedup: multiply-adds before over after, at least 1.

    Returns:
        A schedule object. It holds the multiply-adds of the model, not the model.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``speedup`` is not a number.
        ArgumentValueError: ``speedup`` is below 1, or more than merging can reach; the latter is raised in
            the first forward pass, when the number of tokens is known.
    """
    wanted = real_number(speedup, "speedup")
    if not 1 <= wanted < math.inf:
        raise ArgumentValueError(
            f"`speedup` must be a finite number of at least 1 (1 merges nothing); got {speedup!r}"
        )
    return ForSpeedup(wanted, handle_of(model).arithmetic)


def clamp_schedule(wanted: list[int], num_tokens: int, protected: int) -> list[int]:
    """Clamp what each layer merges to at most half of its unprotected tokens."""
    merged = []
    for r in wanted:
        amount = max(0, min(r, (num_tokens - protected) // 2))
        num_tokens -= amount
        merged.append(amount)
    return merged


def maximal_schedule(num_layers: int, num_tokens: int, protected: int) -> list[int]:
    """Return the schedule in which every layer merges as many tokens as it can."""
    return clamp_schedule([num_tokens] * num_layers, num_tokens, protected)


def spread_evenly(total: int, num_layers: int) -> list[int]:
    """Spread ``total`` evenly over all layers, and the remainder over the first ones."""
    each, more = total // num_layers, total % num_layers
    return [each + 1] * more + [each] * (num_layers - more)


def smallest_schedule(
    num_layers: int, num_tokens: int, protected: int, satisfies: Callable[[list[int]], bool]
) -> list[int]:
    """Return the even schedule that merges the fewest tokens and is ``satisfies``.

    If one layer is to merge one token more, it leaves one token less or as many as before, and so do all
    layers after it. So every total above one that is ``satisfies`` is enough too, and no number of tokens is
    skipped. The schedule in which every layer merges as much as it can must be enough.
    """
    low, high = 0, num_layers * max(0, (num_tokens - protected) // 2)
    while low < high:
        middle = (low + high) // 2
        if satisfies(clamp_schedule(spread_evenly(middle, num_layers), num_tokens, protected)):
            high = middle
        else:
            low = middle + 1
    return clamp_schedule(spread_evenly(low, num_layers), num_tokens, protected)


def handle_of(model: Any) -> Any:
    """Return ``model.tome``, for a model of any framework."""
    handle = getattr(model, "tome", None)
    if not hasattr(type(handle), "arithmetic"):
        raise NotPatchedError(
            f"this {type(model).__name__} is not patched; call apply_patch(model) first"
        )
    return handle


def real_number(value: Any, name: str) -> float:
    """Return ``value`` as a float; the caller's comparison with the allowed range must reject NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(
            f"`{name}` must be a number; got {value!r} ({type(value).__name__})"
        )
    return float(value)
