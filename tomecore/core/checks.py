"""Check arguments for the public functions, so that each mistake has one message."""

from __future__ import annotations

import numbers
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = [
    "check_writable",
    "floating",
    "integral",
    "rank",
    "real",
    "real_number",
    "same_batch",
    "whole_number",
    "why_unwritable",
]


def whole_number(value: Any, name: str, at_least: int = 0, unit: str = "") -> int:
    """Return ``value`` as an int.

    Raises:
        ArgumentTypeError: ``value`` is not an integer. A bool, a float, a string and an array are not:
            reading an array would make the host wait for the device, and Paddle truncates it.
        ArgumentValueError: ``value`` is smaller than ``at_least``.
    """
    found = f"got {value!r} ({type(value).__name__})"
    of_what = f" (counting {unit})" if unit else ""
    try:
        is_array = not isinstance(value, numbers.Integral) and hasattr(value, "dtype")
        if isinstance(value, bool) or is_array:
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ArgumentTypeError(
            f"`{name}` must be an integer of at least {at_least}{of_what}; {found}"
        ) from None
    if number < at_least:
        off = " Use 0 to merge nothing." if at_least == 0 and unit == "tokens" else ""
        raise ArgumentValueError(
            f"`{name}` must be an integer of at least {at_least}{of_what}; {found}.{off}"
        )
    return number


def real_number(value: Any, name: str) -> float:
    """Return ``value`` as a float; the caller's comparison with the allowed range must reject NaN.

    Raises:
        ArgumentTypeError: ``value`` is not a number. A bool, a string and an array are not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(
            f"`{name}` must be a number; got {value!r} ({type(value).__name__})"
        )
    return float(value)


def rank(array: Any, name: str, shape: str) -> None:
    """Raise unless ``array`` has as many axes as ``shape`` has letters, for example ``"(B, N, D)"``.

    Raises:
        ArgumentValueError: the number of axes differs.
    """
    if len(array.shape) != shape.count(",") + 1:
        raise ArgumentValueError(
            f"`{name}` must have shape {shape}; got shape {tuple(array.shape)}. "
            "Add or remove axes so that they are batch, tokens, channels in this order."
            if shape.count(",") == 2
            else f"`{name}` must have shape {shape}; got shape {tuple(array.shape)}."
        )


def floating(xp: Any, array: Any, name: str) -> None:
    """Raise unless ``array`` has a real floating-point dtype.

    Raises:
        ArgumentTypeError: the dtype is another one.
    """
    if not xp.isdtype(array.dtype, "real floating"):
        raise ArgumentTypeError(f"`{name}` must be real floating point; got dtype {array.dtype}")


def integral(xp: Any, array: Any, name: str) -> None:
    """Raise unless ``array`` holds integers.

    Raises:
        ArgumentTypeError: the dtype is another one.
    """
    if not xp.isdtype(array.dtype, "integral"):
        raise ArgumentTypeError(f"`{name}` must hold integers; got dtype {array.dtype}")


def real(xp: Any, array: Any, name: str) -> None:
    """Raise unless ``array`` holds real numbers: floating point, integers or bools.

    Raises:
        ArgumentTypeError: the dtype is another one.
    """
    if not any(xp.isdtype(array.dtype, kind) for kind in ("real floating", "integral", "bool")):
        raise ArgumentTypeError(f"`{name}` must hold real numbers; got dtype {array.dtype}")


def same_batch(array: Any, name: str, like: Any, whose: str = "this plan") -> None:
    """Raise unless ``array`` has as many samples on axis 0 as ``like``.

    In a static graph or a trace the batch size may be unknown; then nothing is checked.

    Raises:
        ArgumentValueError: the numbers of samples differ.
    """
    found, expected = array.shape[0], like.shape[0]
    known = all(type(size) is int and size >= 0 for size in (found, expected))
    if known and found != expected:
        raise ArgumentValueError(
            f"`{name}` must have {expected} samples on axis 0, as {whose} has; "
            f"got shape {tuple(array.shape)}"
        )


def why_unwritable(path: Path, endings: Sequence[str] = ()) -> str | None:
    """Return why no file can be written at ``path``, with the next step; None if one can.

    Args:
        path: the file.
        endings: the endings that are allowed, in lower case; empty: any.
    """
    if path.is_dir():
        return f"{path} is a folder; give a file name"
    if endings and path.suffix.lower() not in endings:
        *others, last = endings
        return f"{path} must end in {', '.join(others)}{' or ' if others else ''}{last}"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; create it first"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written, because it or its folder is read-only; give another name"
    return None


def check_writable(path: Path, name: str) -> None:
    """Raise if no file can be written at ``path``, the value of the argument ``name``.

    Raises:
        ArgumentValueError: it is a folder, its folder does not exist, or it is read-only.
    """
    reason = why_unwritable(path)
    if reason is not None:
        raise ArgumentValueError(f"`{name}`: {reason}")
