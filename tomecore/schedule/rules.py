"""Compute schedules for a target: a share of the tokens, a number of tokens, a speed-up. Pure Python.

The first block calls them with the number of tokens; they return what each layer merges, which is never
more than it can. All numbers are Python ints and all loops are plain, so that traced and compiled models
can call them too. Public names are in :mod:`tomecore.schedule`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

from tomecore.core.checks import real_number, whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NotPatchedError

__all__ = [
    "RULES",
    "ForSpeedup",
    "ForTokens",
    "Ratio",
    "clamp_schedule",
    "for_speedup",
    "for_tokens",
    "maximal_schedule",
    "real_speedup",
]

#: the rules that spread merges over layers; the first one is the default
RULES = ("ratio", "constant", "early")
#: the rule of objects that were created or pickled before there were others
FORMER_RULE = "constant"
#: the layers in which the rule "early" merges
EARLY_LAYERS = 4


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
        """Return how many tokens each layer merges."""
        return ratio_schedule(self.ratio, num_layers, num_tokens, protected)


@dataclass(frozen=True)
class ForTokens:
    """A schedule that ends with exactly ``last`` tokens; :func:`for_tokens` returns it.

    Args:
        last: tokens after the last layer, protected ones included.
        rule: how merges are spread over the layers, see :func:`for_speedup`.
        trim_last: whether the last layer merges nothing, as with ``apply_patch(trim_last=True)``.
    """

    last: int
    rule: str = FORMER_RULE
    trim_last: bool = field(default=False, repr=False)

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        """Return how many tokens each layer merges."""
        if self.trim_last:
            return [*self._merges(num_layers - 1, num_tokens, protected), 0]
        return self._merges(num_layers, num_tokens, protected)

    def _merges(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        last = self.last
        least = num_tokens - sum(maximal_schedule(num_layers, num_tokens, protected, self.rule))
        if not least <= last <= num_tokens:
            raise ArgumentValueError(
                f"no schedule of the rule {self.rule!r} ends with {last} tokens: from {num_tokens} tokens, "
                f"{protected} of them protected, {num_layers} layers can reach at least {least} and at most "
                f"{num_tokens}. Use for_tokens(model, last=...) with a number from {least} to {num_tokens}."
            )

        def satisfies(merged: list[int]) -> bool:
            return num_tokens - sum(merged) <= last

        merged = smallest_schedule(num_layers, num_tokens, protected, self.rule, satisfies)
        excess = last - (num_tokens - sum(merged))  # a share may skip a number of tokens
        for layer in range(num_layers - 1, -1, -1):
            less = min(excess, merged[layer])
            merged[layer] -= less
            excess -= less
        return merged


class Counted(Protocol):
    """The parts of a :class:`tomecore.schedule.arithmetic.Arithmetic` that a schedule reads."""

    @property
    def layers(self) -> Sized:
        """The blocks."""

    @property
    def protected(self) -> int:
        """Prefix tokens, which never merge."""

    @property
    def unpatched(self) -> Counted:
        """The same model without ``trim_last``."""

    def multiply_adds(self, num_tokens: int, r: Any, /) -> float:
        """Return the multiply-adds of one image."""

    def of_merged(self, num_tokens: int, merged: list[int], /) -> float:
        """Return the same, of a list that is known to be right."""


@dataclass(frozen=True)
class ForSpeedup:
    """A schedule for an arithmetic speed-up; :func:`for_speedup` returns it.

    Args:
        speedup: the arithmetic speed-up to reach, multiply-adds before over after.
        arithmetic: the multiply-adds of the model, a :class:`tomecore.schedule.arithmetic.Arithmetic`.
        rule: how merges are spread over the layers, see :func:`for_speedup`.
    """

    speedup: float
    arithmetic: Counted = field(repr=False)
    rule: str = FORMER_RULE

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        """Return how many tokens each layer merges."""
        arithmetic = self.arithmetic
        known = (len(arithmetic.layers), arithmetic.protected)
        if (num_layers, protected) != known:
            raise ArgumentValueError(
                f"for_speedup computed this schedule for a model with {known[0]} layers and {known[1]} "
                f"protected tokens, but this model has {num_layers} layers and {protected} protected "
                "tokens; call for_speedup with this model"
            )
        before = arithmetic.unpatched.multiply_adds(num_tokens, 0)

        def satisfies(merged: list[int]) -> bool:
            return bool(before >= self.speedup * arithmetic.of_merged(num_tokens, merged))

        most = maximal_schedule(num_layers, num_tokens, protected, self.rule)
        if not satisfies(most):
            largest = math.floor(100 * before / arithmetic.of_merged(num_tokens, most)) / 100
            raise ArgumentValueError(
                f"no schedule of the rule {self.rule!r} is {self.speedup:g} times faster: with "
                f"{num_tokens} tokens, and every layer that this rule uses merging as many as it can, the "
                f"arithmetic limit is {largest:.2f}. Use for_speedup(model, speedup) with at most "
                f"{largest:.2f}{', or another rule' if self.rule == 'early' else ''}."
            )
        return smallest_schedule(num_layers, num_tokens, protected, self.rule, satisfies)


def for_tokens(model: Any, last: int, rule: str | None = None) -> ForTokens:
    """Return a schedule that ends with exactly ``last`` tokens: ``model.r = for_tokens(model, last=98)``.

    Args:
        model: a patched model.
        last: tokens after the last layer, prefix tokens included.
        rule: how merges are spread over the layers, see :func:`for_speedup`. If a share of the tokens skips
            the number ``last``, the last layers merge fewer.

    Returns:
        A schedule object. It does not hold the model, and can be set on other models.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``last`` is not an integer, or ``rule`` is not a string.
        ArgumentValueError: ``rule`` is unknown, or no schedule can reach ``last``. The latter is raised at
            once if possible, otherwise in the first forward pass, when the number of tokens is known.
    """
    handle = handle_of(model)
    last = whole_number(last, "last", at_least=1)
    protected = handle.protected
    if last <= protected:
        never = "1 token of this model never merges"
        if protected != 1:
            never = f"{protected} tokens of this model never merge"
        raise ArgumentValueError(
            f"`last` must be at least {protected + 1}: {never}, and at least one of the others is left; "
            f"got {last}"
        )
    return ForTokens(last, known_rule(rule), handle.trim_last)


def for_speedup(model: Any, speedup: float, rule: str | None = None) -> ForSpeedup:
    """Return a schedule for an arithmetic speed-up: ``model.r = for_speedup(model, 2.0)``.

    Of the schedules of its rule, it is the one that merges the fewest tokens with which the model needs at
    most ``1 / speedup`` of its multiply-adds. The measured speed-up depends on the machine, and is a little
    less.

    Args:
        model: a patched model.
        speedup: multiply-adds before over after, at least 1.
        rule: how merges are spread over the layers. "ratio": every layer keeps the same share of its
            tokens, as :class:`Ratio` does with the largest share that reaches ``speedup``. "constant":
            every layer merges the same number, and the first ones one more if there is a remainder; if
            the last layers cannot merge as many, the others merge more. "early": layers 0 to 3 keep the
            same share, and no other layer merges, for batch 1 and small models. None: "ratio", which lost
            least on a real model (``docs/which-r.md``).

    Returns:
        A schedule object. It holds the multiply-adds of the model, not the model.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError: ``speedup`` is not a number, or ``rule`` is not a string.
        ArgumentValueError: ``rule`` is unknown, ``speedup`` is below 1, or more than this rule can reach; the
            last is raised in the first forward pass, when the number of tokens is known.
    """
    handle = handle_of(model)
    return ForSpeedup(real_speedup(speedup), handle.arithmetic, known_rule(rule))


def real_speedup(speedup: Any) -> float:
    """Return ``speedup`` as a float; raise if it is not a finite number of at least 1."""
    wanted = real_number(speedup, "speedup")
    if not 1 <= wanted < math.inf:
        raise ArgumentValueError(
            f"`speedup` must be a finite number of at least 1 (1 merges nothing); got {speedup!r}"
        )
    return wanted


def known_rule(rule: Any) -> str:
    """Return the name of a rule, the default one for None; raise if there is no such rule."""
    if rule is None:
        return RULES[0]
    allowed = f"{', '.join(map(repr, RULES))}, or None for {RULES[0]!r}"
    if not isinstance(rule, str):
        raise ArgumentTypeError(f"`rule` must be {allowed}; got {rule!r} ({type(rule).__name__})")
    if rule not in RULES:
        raise ArgumentValueError(f"`rule` must be {allowed}; got {rule!r}")
    return rule


def clamp_schedule(wanted: list[int], num_tokens: int, protected: int) -> list[int]:
    """Clamp what each layer merges to at most half of its unprotected tokens."""
    merged = []
    for r in wanted:
        amount = max(0, min(r, (num_tokens - protected) // 2))
        num_tokens -= amount
        merged.append(amount)
    return merged


def layers_of_rule(num_layers: int, rule: str) -> int:
    """Return how many layers, from the first on, may merge according to a rule."""
    return min(EARLY_LAYERS, num_layers) if rule == "early" else num_layers


def ratio_schedule(ratio: float, num_layers: int, num_tokens: int, protected: int) -> list[int]:
    """Return the schedule of :class:`Ratio`, which Dynamo of torch 2.8 cannot build while it traces."""
    free = max(0, num_tokens - protected)
    merged = []
    for _ in range(num_layers):
        kept = int(ratio * free + 0.5)
        merged.append(free - kept)
        free = kept
    return merged


def maximal_schedule(
    num_layers: int, num_tokens: int, protected: int, rule: str = FORMER_RULE
) -> list[int]:
    """Return the schedule in which every layer that the rule uses merges as many tokens as it can."""
    used = layers_of_rule(num_layers, rule)
    wanted = [num_tokens] * used + [0] * (num_layers - used)
    return clamp_schedule(wanted, num_tokens, protected)


def smallest_schedule(
    num_layers: int,
    num_tokens: int,
    protected: int,
    rule: str,
    satisfies: Callable[[list[int]], bool],
) -> list[int]:
    """Return the schedule of a rule that merges the fewest tokens and for which ``satisfies`` is true.

    The condition must be true for :func:`maximal_schedule`, and stay true if a layer leaves fewer tokens.
    """
    if rule == "constant":
        return smallest_even_schedule(num_layers, num_tokens, protected, satisfies)
    used = layers_of_rule(num_layers, rule)
    rest = [0] * (num_layers - used)
    return largest_ratio_schedule(used, rest, num_tokens, protected, satisfies)


def largest_ratio_schedule(
    used: int,
    rest: list[int],
    num_tokens: int,
    protected: int,
    satisfies: Callable[[list[int]], bool],
) -> list[int]:
    """Return the schedule of the largest share that satisfies the condition, in the ``used`` first layers.

    A larger share leaves as many tokens or more in every layer. A layer of f tokens keeps one more from a
    share of (2 k + 1) / (2 f) on, for an integer k, and two such shares are at least 1 / (2 f f) apart,
    with the f of the first layer. So two shares that are closer have at most one of them in between, and
    the bisection ends there with the exact schedule.
    """
    nothing = [0] * used + rest
    if satisfies(nothing):
        return nothing
    free = max(0, num_tokens - protected)
    low, high = 0.5, 1.0
    while 2 * free * free * (high - low) >= 1:
        middle = (low + high) / 2
        if satisfies(ratio_schedule(middle, used, num_tokens, protected) + rest):
            low = middle
        else:
            high = middle
    return ratio_schedule(low, used, num_tokens, protected) + rest


def spread_evenly(total: int, num_layers: int) -> list[int]:
    """Spread ``total`` evenly over all layers, and the remainder over the first ones."""
    each, more = total // num_layers, total % num_layers
    return [each + 1] * more + [each] * (num_layers - more)


def smallest_even_schedule(
    num_layers: int, num_tokens: int, protected: int, satisfies: Callable[[list[int]], bool]
) -> list[int]:
    """Return the even schedule that merges the fewest tokens and satisfies the condition.

    If one layer is to merge one token more, it leaves one token less or as many as before, and so do all
    layers after it. So if one total satisfies the condition, every larger total does too, and no number of
    tokens is skipped.
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
    """Return ``model.tome``, for a model of any framework.

    Raises:
        NotPatchedError: the model is not patched, or ``model`` is a number, as if arguments were swapped.
    """
    if isinstance(model, numbers.Number):
        raise NotPatchedError(
            f"`model`, the first argument, must be a model; got {model!r}. Load one, and call "
            "apply_patch(model) first"
        )
    handle = getattr(model, "tome", None)
    if not hasattr(type(handle), "arithmetic"):
        raise NotPatchedError(
            f"this {type(model).__name__} is not patched; call apply_patch(model) first"
        )
    return handle
