"""Turn every form of ``r`` into the number of tokens that each layer merges. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.schedule.rules import clamp_schedule

__all__ = ["R", "Schedule", "as_data", "parse_r", "tokens_per_layer"]


@runtime_checkable
class Schedule(Protocol):
    """A callable that returns how many tokens each layer merges, once the token count is known."""

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        """Return how many tokens each layer merges."""


#: int | (r, inflect) | list of int | schedule object
R = int | tuple[int, float] | Sequence[int] | Schedule


def as_data(r: R) -> Any:
    """``r`` as JSON holds it: an int, a list, or the text of a schedule object."""
    if isinstance(r, int):
        return r
    return list(r) if isinstance(r, Sequence) else repr(r)


_FORMS = (
    "an int (tokens merged per layer), a tuple (r, inflect) with -1 <= inflect <= 1, a list of ints "
    "(one per layer), or a schedule object called with (num_layers, num_tokens, protected)"
)


def parse_r(
    num_layers: int, r: R, *, num_tokens: int | None = None, protected: int = 0
) -> list[int]:
    """Turn any form of ``r`` into the number of tokens to merge in each layer, not yet clamped.

    Args:
        num_layers: layers of the model, at least 1.
        r: an int, the same in every layer; a tuple ``(r, inflect)``, a straight line with mean r that
            falls for inflect < 0 and rises for inflect > 0, from ``int(r (1 - inflect))`` to
            ``2 r - int(r (1 - inflect))``, truncated as ToMe does (one layer: r); a list, padded with
            0; or a schedule object.
        num_tokens: tokens before the first layer; only a schedule object needs it.
        protected: prefix tokens, which never merge; only a schedule object needs it.

    Returns:
        ``num_layers`` ints, none negative.

    Raises:
        ArgumentTypeError: ``r`` has none of these forms, or a number in it is not an integer.
        ArgumentValueError: a negative number, an inflect outside [-1, 1], or a list with more numbers
            than the model has layers.
    """
    num_layers = whole_number(num_layers, "num_layers", at_least=1)
    if isinstance(r, tuple):
        return _line(num_layers, r)
    if isinstance(r, Sequence) and not isinstance(r, (str, bytes)):
        return _check_list(num_layers, r, "r")
    if callable(r):
        if num_tokens is None:
            raise ArgumentValueError(
                f"`r` is a schedule object ({type(r).__name__}), which depends on the number of "
                "tokens; pass `num_tokens=`, or run one forward pass first"
            )
        answer = r(num_layers, num_tokens, protected)
        if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
            raise ArgumentTypeError(
                f"the schedule object {type(r).__name__} must return a list of ints, one per layer; "
                f"got {answer!r}"
            )
        return _check_list(num_layers, answer, f"{type(r).__name__}(...)")
    try:
        return [whole_number(r, "r", unit="tokens")] * num_layers
    except ArgumentTypeError:
        raise ArgumentTypeError(f"`r` must be {_FORMS}; got {r!r} ({type(r).__name__})") from None


def _line(num_layers: int, r: tuple[Any, ...]) -> list[int]:
    if len(r) != 2:
        raise ArgumentValueError(
            f"`r` as a tuple must be (r, inflect); got {r!r}. Use a list for one number per layer."
        )
    mean = whole_number(r[0], "r[0]", unit="tokens")
    try:
        if isinstance(r[1], (bool, str, bytes)):
            raise TypeError
        inflect = float(r[1])
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"`r[1]`, the inflect, must be a number from -1 to 1; got {r[1]!r}"
        ) from None
    if math.isnan(inflect) or not -1 <= inflect <= 1:
        raise ArgumentValueError(
            f"`r[1]`, the inflect, must be from -1 (merge early) to 1 (merge late); got {r[1]!r}"
        )
    if num_layers == 1:
        return [mean]
    first = int(mean * (1 - inflect))
    step = (2 * mean - 2 * first) / (num_layers - 1)
    return [int(first + step * layer) for layer in range(num_layers)]


def _check_list(num_layers: int, values: Sequence[Any], name: str) -> list[int]:
    if len(values) > num_layers:
        raise ArgumentValueError(
            f"`{name}` has {len(values)} numbers for a model of {num_layers} layers; "
            f"at most {num_layers} are allowed (a shorter list is padded with 0)"
        )
    numbers = [whole_number(v, f"{name}[{i}]", unit="tokens") for i, v in enumerate(values)]
    return numbers + [0] * (num_layers - len(numbers))


def tokens_per_layer(num_layers: int, r: R, num_tokens: int, protected: int = 1) -> list[int]:
    """Return how many tokens leave each layer, after clamping.

    Args:
        num_layers: layers of the model, at least 1.
        r: any form that :func:`parse_r` accepts.
        num_tokens: tokens that enter the first layer, protected ones included.
        protected: prefix tokens, which never merge.

    Returns:
        ``num_layers`` ints: the tokens after each layer. A layer merges at most half of its unprotected
        tokens.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`parse_r`.
    """
    tokens = whole_number(num_tokens, "num_tokens", at_least=1)
    protected = whole_number(protected, "protected")
    wanted = parse_r(num_layers, r, num_tokens=tokens, protected=protected)
    after = []
    for merged in clamp_schedule(wanted, tokens, protected):
        tokens -= merged
        after.append(tokens)
    return after
