"""Schedules that answer a wish: a share of the tokens, a number of tokens, a speed-up. Pure Python.

They are asked at the first block, with the number of tokens, and answer with what each layer merges,
which is never more than it can. All numbers are Python ints, so that traced and compiled models can ask
too; loops are plain for the same reason. Public names are in :mod:`tomecore.schedule`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NotPatchedError

__all__ = ["ForSpeedup", "ForTokens", "Ratio", "clamped", "for_speedup", "for_tokens"]


@dataclass(frozen=True)
class Ratio:
    """Every layer keeps the same share of its tokens, protected ones apart: ``model.r = Ratio(0.9)``.

    Args:
        ratio: the share to keep, from 0.5, which is as much as a layer can merge, to 1, which merges
            nothing. What is kept of u tokens is ``ratio * u`` rounded to the nearest whole number, a
            half up, so that small numbers of tokens stop merging: ``Ratio(0.9)`` leaves 5 tokens as
            they are.

    Raises:
        ArgumentTypeError: not a number.
        ArgumentValueError: a ratio below 0.5 or above 1.
    """

    ratio: float

    def __post_init__(self) -> None:
        ratio = a_number(self.ratio, "ratio")
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
    """Ends with exactly ``last`` tokens; made by :func:`for_tokens`.

    Args:
        last: tokens after the last layer, protected ones included.
    """

    last: int

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        last = self.last
        most = sum(steepest(num_layers, num_tokens, protected))
        if not num_tokens - most <= last <= num_tokens:
            raise ArgumentValueError(
                f"no schedule ends with {last} tokens: {num_layers} layers make of {num_tokens} tokens, "
                f"{protected} of them protected, at least {num_tokens - most} and at most {num_tokens}. "
                f"Use for_tokens(model, last=...) with a number from {num_tokens - most} to {num_tokens}."
            )

        def enough(merged: list[int]) -> bool:
            return num_tokens - sum(merged) <= last

        return fewest(num_layers, num_tokens, protected, enough)


@dataclass(frozen=True)
class ForSpeedup:
    """Reaches an arithmetic limit; made by :func:`for_speedup`.

    Args:
        speedup: how much faster the model is to be by arithmetic alone.
        arithmetic: the multiply-adds of the model, a :class:`tomecore.schedule.arithmetic.Arithmetic`.
    """

    speedup: float
    arithmetic: Any = field(repr=False)

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        arithmetic = self.arithmetic
        known = (len(arithmetic.layers), arithmetic.protected)
        if (num_layers, protected) != known:
            raise ArgumentValueError(
                f"this schedule was made by for_speedup for a model of {known[0]} layers and {known[1]} "
                f"protected tokens, and was asked for {num_layers} layers and {protected} protected "
                "tokens; make one for this model"
            )
        most = arithmetic.limit(num_tokens, steepest(num_layers, num_tokens, protected))
        if most < self.speedup:
            largest = math.floor(100 * most) / 100
            raise ArgumentValueError(
                f"no schedule makes this model {self.speedup:g} times faster: of {num_tokens} tokens, as "
                f"many merged as the layers can, the arithmetic limit is {largest:.2f}. Wish for at most "
                "that much."
            )
        before = arithmetic.unpatched.multiply_adds(num_tokens, 0)

        def enough(merged: list[int]) -> bool:
            return bool(before >= self.speedup * arithmetic.multiply_adds(num_tokens, merged))

        return fewest(num_layers, num_tokens, protected, enough)


def for_tokens(model: Any, last: int) -> ForTokens:
    """A schedule that ends with exactly ``last`` tokens: ``model.r = for_tokens(model, last=98)``.

    Every layer merges the same number, the first layers one more where it does not come out even. Where
    the last layers cannot merge as many, the others merge more.

    Args:
        model: a patched model.
        last: tokens after the last layer, those included that never merge.

    Returns:
        A schedule object. It does not hold the model, and may be set on others.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``last`` is not an integer.
        ArgumentValueError: a number that no schedule can reach; at the first forward pass, when the
            number of tokens is known, if not at once.
    """
    last = whole_number(last, "last", at_least=1)
    protected = handle_of(model).protected
    if last <= protected:
        raise ArgumentValueError(
            f"`last` must be at least {protected + 1}: {protected} tokens of this model never merge, and "
            f"one of the others is always left; got {last}"
        )
    return ForTokens(last)


def for_speedup(model: Any, speedup: float) -> ForSpeedup:
    """A schedule for an arithmetic limit: ``model.r = for_speedup(model, 2.0)``.

    Merges the fewest tokens for which the model needs ``1 / speedup`` of its multiply-adds, or less; every
    layer the same number, the first layers one more. What a machine makes of it is a matter of
    measurement, and a little less.

    Args:
        model: a patched model.
        speedup: at least 1.

    Returns:
        A schedule object. It does not hold the model, but its numbers of multiply-adds.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``speedup`` is not a number.
        ArgumentValueError: a number below 1; or, at the first forward pass, when the number of tokens
            is known, more than merging can give.
    """
    wanted = a_number(speedup, "speedup")
    if not 1 <= wanted < math.inf:
        raise ArgumentValueError(
            f"`speedup` must be a finite number of at least 1 (1 merges nothing); got {speedup!r}"
        )
    return ForSpeedup(wanted, handle_of(model).arithmetic)


def clamped(wanted: list[int], num_tokens: int, protected: int) -> list[int]:
    """What each layer merges, of what it is asked to: at most half of what is not protected."""
    merged = []
    for r in wanted:
        amount = max(0, min(r, (num_tokens - protected) // 2))
        num_tokens -= amount
        merged.append(amount)
    return merged


def steepest(num_layers: int, num_tokens: int, protected: int) -> list[int]:
    """As much as the layers can merge."""
    return clamped([num_tokens] * num_layers, num_tokens, protected)


def even(total: int, num_layers: int) -> list[int]:
    """``total`` over all layers, the remainder over the first ones."""
    each, more = total // num_layers, total % num_layers
    return [each + 1] * more + [each] * (num_layers - more)


def fewest(
    num_layers: int, num_tokens: int, protected: int, enough: Callable[[list[int]], bool]
) -> list[int]:
    """The even schedule that merges the fewest tokens of those that are ``enough``.

    A layer asked for one more leaves one token less, or as many as before, and so do all layers behind
    it: what is ``enough`` once stays so, and every number of tokens is met. As much as the layers can
    merge must be enough.
    """
    low, high = 0, num_layers * max(0, (num_tokens - protected) // 2)
    while low < high:
        middle = (low + high) // 2
        if enough(clamped(even(middle, num_layers), num_tokens, protected)):
            high = middle
        else:
            low = middle + 1
    return clamped(even(low, num_layers), num_tokens, protected)


def handle_of(model: Any) -> Any:
    """``model.tome``, whatever the framework."""
    handle = getattr(model, "tome", None)
    if not hasattr(type(handle), "arithmetic"):
        raise NotPatchedError(
            f"this {type(model).__name__} is not patched; call apply_patch(model) first"
        )
    return handle


def a_number(value: Any, name: str) -> float:
    """``value`` as a float; NaN is refused by the comparison that must follow."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(
            f"`{name}` must be a number; got {value!r} ({type(value).__name__})"
        )
    return float(value)
