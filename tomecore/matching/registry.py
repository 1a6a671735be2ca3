"""Names of matchings, and what each needs from a model."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import TypeVar

from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.matching.context import Matching

__all__ = ["find", "name_of", "names", "needs", "needs_of", "register"]

_M = TypeVar("_M", bound=Matching)
_MATCHINGS: dict[str, Matching] = {}
#: what a matching can need from a model
_NEEDS = ("class_attention", "values")


def register(name: str, matching: Matching) -> None:
    """Give a matching a name, for ``apply_patch(model, matching=name)`` and ``--matching name``.

    Args:
        name: the name; an earlier matching of this name is replaced.
        matching: (keys (B, N, D), r, context) -> :class:`tomecore.MergePlan` that keeps N - r tokens, the
            prefix tokens first.

    Raises:
        ArgumentTypeError: ``name`` is not a string, or ``matching`` is not callable.
    """
    if not isinstance(name, str) or not name:
        raise ArgumentTypeError(f"`name` must be a string that is not empty; got {name!r}")
    if not callable(matching):
        raise ArgumentTypeError(
            "`matching` must be a function (keys, r, context) -> MergePlan; "
            f"got {matching!r} ({type(matching).__name__})"
        )
    _MATCHINGS[name] = matching


def names() -> list[str]:
    """Return the names of all matchings, tomecore's own first."""
    return list(_MATCHINGS)


def find(matching: str | Matching) -> Matching:
    """Return the matching that is registered under this name; a function is returned unchanged.

    Raises:
        ArgumentValueError: there is no matching of this name.
        ArgumentTypeError: ``matching`` is neither a name nor callable.
    """
    if isinstance(matching, str):
        if matching in _MATCHINGS:
            return _MATCHINGS[matching]
        near = difflib.get_close_matches(matching, _MATCHINGS, 1, 0.5)
        hint = (
            f" Did you mean {near[0]!r}?"
            if near
            else " Register your own by tomecore.matching.register before you use it or load its model."
        )
        raise ArgumentValueError(
            f"`matching` must be one of {', '.join(map(repr, _MATCHINGS))}, or a function (keys, r, context) "
            f"-> MergePlan; got {matching!r}.{hint}"
        )
    if not callable(matching):
        raise ArgumentTypeError(
            "`matching` must be a name, or a function (keys, r, context) -> MergePlan; "
            f"got {matching!r} ({type(matching).__name__})"
        )
    return matching


def name_of(matching: str | Matching) -> str:
    """Return the registered name of a matching, or the qualified name of the function."""
    if isinstance(matching, str):
        return matching
    for name, known in _MATCHINGS.items():
        if known is matching:
            return name
    while isinstance(matching, functools.partial):
        matching = matching.func
    return str(getattr(matching, "__qualname__", repr(matching)))


def needs(*what: str) -> Callable[[_M], _M]:
    """Declare what a matching reads from a block, so that ``apply_patch`` refuses models that lack it.

    Args:
        what: "class_attention", for ``context.class_attention()``; "values", for ``context.values()``.

    Raises:
        ArgumentValueError: ``what`` holds another word.
    """
    for one in what:
        if one not in _NEEDS:
            raise ArgumentValueError(
                f"`what` must be {' or '.join(map(repr, _NEEDS))}; got {one!r}"
            )

    def declare(matching: _M) -> _M:
        matching.needs = frozenset(what)  # type: ignore[attr-defined]
        return matching

    return declare


def needs_of(matching: Matching) -> frozenset[str]:
    """Return what a matching, or the function of a ``functools.partial``, declared with :func:`needs`."""
    while isinstance(matching, functools.partial):
        matching = matching.func
    found: frozenset[str] = getattr(matching, "needs", frozenset())
    return found
