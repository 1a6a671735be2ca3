"""A schedule for one model and one number of tokens, in a file: what a search returns, and ``load`` reads.

The file is JSON: ``{"schema": "tomecore schedule 1", "r": [...], "num_tokens": N, "speedup": s}``, with what
the schedule was found for: ``model``, ``matching`` and ``multiply_adds``. Further keys are for people who
read it, and are ignored here.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.schedule.arithmetic import in_words
from tomecore.schedule.rules import clamp_schedule

__all__ = ["SCHEMA", "Tuned", "load", "matching_of", "read_schedule", "write_json"]

SCHEMA = "tomecore schedule 1"
#: how far the multiply-adds of two models may be apart, relative to each other: other heads, not other widths
_APART = 0.02
#: characters of a value that a message shows
_SHOWN = 40


@dataclass(frozen=True)
class Tuned:
    """A list of r for models with as many layers, and images with as many tokens; :func:`load` returns it.

    Args:
        r: tokens that each layer merges.
        num_tokens: tokens that enter the first layer, prefix tokens included.
        speedup: the arithmetic speed-up that it reaches, multiply-adds before over after.
        matching: which tokens merged in the search; None: any matching.
        multiply_adds: those of the model of the search, for one image without merging; None: unknown.
        model: name of that model on the command line; None: unknown.
    """

    r: tuple[int, ...]
    num_tokens: int
    speedup: float
    matching: str | None = None
    multiply_adds: float | None = None
    model: str | None = None

    def __call__(self, num_layers: int, num_tokens: int, protected: int) -> list[int]:
        """Return how many tokens each layer merges.

        Raises:
            ArgumentValueError: the model has another number of layers, the images of tokens, or a layer
                cannot merge as many tokens, because more of them are prefix tokens.
        """
        if num_layers != len(self.r):
            raise ArgumentValueError(
                f"this schedule was found for a model with {len(self.r)} layers, but this model has "
                f"{num_layers}; search again with this model"
            )
        if num_tokens != self.num_tokens:
            raise ArgumentValueError(
                f"this schedule was found for {self.num_tokens} tokens, but {num_tokens} enter the first "
                "layer; use images of the same size, or search again with these"
            )
        fault = too_many(self.r, num_tokens, protected)
        if fault is not None:
            raise ArgumentValueError(f"in this schedule, {fault}; search again with this model")
        return list(self.r)

    def check_model(self, handle: Any) -> None:
        """Raise if the schedule was found for another kind of model; called when it is set as ``model.r``.

        Models of the same size with other weights pass: the same model may have several names.

        Args:
            handle: ``model.tome``.

        Raises:
            ArgumentValueError: the model merges by another matching, or needs other multiply-adds.
        """
        matching = matching_of(handle)
        if self.matching is not None and matching != self.matching:
            raise ArgumentValueError(
                f"this schedule was found with the matching {self.matching!r}, but this model merges with "
                f"{matching!r}; use apply_patch(model, matching={self.matching!r}) (--matching), or search "
                f"again with {matching!r}"
            )
        if self.multiply_adds is None:
            return
        here = handle.arithmetic.unpatched.multiply_adds(self.num_tokens, 0)
        if abs(here - self.multiply_adds) > _APART * self.multiply_adds:
            named = "a model" if self.model is None else self.model
            raise ArgumentValueError(
                f"this schedule was found for {named}, which needs {in_words(self.multiply_adds)} "
                f"multiply-adds for {self.num_tokens} tokens, but this model needs {in_words(here)}; search "
                "again with this model"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a file."""
        return {"schema": SCHEMA, **vars(self), "r": list(self.r)}

    def __str__(self) -> str:
        return f"tuned for {self.speedup:.3g}x"


def load(path: str | os.PathLike[str]) -> Tuned:
    """Return the schedule in a file that ``tomecore tune`` wrote: ``model.r = schedule.load("tuned.json")``.

    Args:
        path: the JSON file.

    Raises:
        ArgumentTypeError: ``path`` is not the name of a file.
        ArgumentValueError: there is no such file, or it holds something else. When it is set as ``model.r``:
            the model has another size or matching. In a forward pass: the model has another number of
            layers, or the images of tokens.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"`path` must be the name of a file; got {path!r} ({type(path).__name__})"
        )
    try:
        return read_schedule(path)
    except ArgumentValueError as error:
        raise ArgumentValueError(f"`path`: {error}") from error


def read_schedule(path: str | os.PathLike[str]) -> Tuned:
    """Return the schedule in a file, as :func:`load` does; the messages do not name an argument.

    Raises:
        ArgumentValueError: there is no such file, or it holds something else.
    """
    name, hint = os.fsdecode(path), "give a file that `tomecore tune` wrote"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ArgumentValueError(f"there is no file {name}; {hint}") from error
    except UnicodeDecodeError as error:
        raise ArgumentValueError(f"{name} is not text in UTF-8; {hint}") from error
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise ArgumentValueError(f"{name!r} cannot be read ({reason}); {hint}") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ArgumentValueError(f"{name} is not JSON ({where}); {hint}") from error
    except (RecursionError, ValueError) as error:  # too deep, or a number of too many digits
        raise ArgumentValueError(f"{name} holds JSON that Python cannot read; {hint}") from error
    fault = fault_of(content)
    if fault is not None:
        raise ArgumentValueError(f"{name} holds no schedule: {fault}; {hint}")
    known = {key: content.get(key) for key in ("matching", "multiply_adds", "model")}
    return Tuned(tuple(content["r"]), content["num_tokens"], float(content["speedup"]), **known)


def fault_of(content: Any) -> str | None:
    """Return why plain data is not a schedule; None if it is one."""
    if not isinstance(content, dict):
        return f"it is {shown(content)}, not an object with r and num_tokens"
    if content.get("schema") != SCHEMA:
        return f"its schema is {shown(content.get('schema'))}, not {SCHEMA!r}"
    for key in ("r", "num_tokens", "speedup"):
        if key not in content:
            return f"it has no {key}"
    r, num_tokens, speedup = content["r"], content["num_tokens"], content["speedup"]
    if not isinstance(r, list) or not r or any(type(one) is not int or one < 0 for one in r):
        return f"its r is {shown(r)}, not a list of integers of at least 0, one for each layer"
    if type(num_tokens) is not int or num_tokens < 1:
        return f"its num_tokens is {shown(num_tokens)}, not an integer of at least 1"
    if not positive(speedup):
        return f"its speedup is {shown(speedup)}, not a number above 0"
    for key in ("matching", "model"):
        if not isinstance(content.get(key), str | None):
            return f"its {key} is {shown(content[key])}, not text"
    if not (content.get("multiply_adds") is None or positive(content["multiply_adds"])):
        return f"its multiply_adds is {shown(content['multiply_adds'])}, not a number above 0"
    return too_many(r, num_tokens, 0)


def too_many(r: list[int] | tuple[int, ...], num_tokens: int, protected: int) -> str | None:
    """Return which layer merges more than half of its unprotected tokens; None if none does."""
    for layer, can in enumerate(clamp_schedule(list(r), num_tokens, protected)):
        if r[layer] > can:
            merged = shown(r[layer])
            return f"layer {layer} merges {merged} tokens, but it can merge at most {can} of those it gets"
    return None


def positive(value: Any) -> bool:
    """Whether plain data is a number above 0 that a float can hold."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


def shown(value: Any) -> str:
    """Return plain data as a message shows it: as JSON, at most :data:`_SHOWN` characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."


def matching_of(handle: Any) -> str:
    """Return the name of the matching of ``model.tome``; of a function, its qualified name."""
    chosen = handle.matching
    return chosen if isinstance(chosen, str) else str(getattr(chosen, "__qualname__", ""))


def write_json(path: Path, content: Any) -> None:
    """Write plain data; an interruption leaves an existing file as it was."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(path)
