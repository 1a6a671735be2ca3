"""A loaded model with everything that the tools need, from any library."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError, MissingLibraryError
from tomecore.frameworks import framework_of
from tomecore.loading.images import Preprocess

__all__ = ["Loaded", "library", "near", "unknown_model"]


@dataclass(frozen=True)
class Loaded:
    """A model, and how to prepare its input.

    Args:
        name: the name that it was loaded by.
        model: the model, in evaluation mode, on the CPU.
        preprocess: turns an image into the model's input.
        transform: the library's own function from an image to (C, H, W) float32, if it has one.
        whole: the model that ``model`` is the vision tower of, if that has a projection of its own.
        initialised: whether all weights hold values; see ``shapes_only`` of :func:`tomecore.loading.load`.
    """

    name: str
    model: Any
    preprocess: Preprocess
    transform: Callable[[Any], np.ndarray] | None = field(default=None, repr=False)
    whole: Any = field(default=None, repr=False)
    initialised: bool = field(default=True, repr=False)

    @property
    def framework(self) -> str:
        """The model's framework, "torch" or "paddle"."""
        return framework_of(self.model)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        return (self.preprocess.channels, *self.preprocess.size)

    def image(self, picture: Any) -> np.ndarray:
        """Return a Pillow image as the model's input, (C, H, W) float32."""
        return self.preprocess(picture) if self.transform is None else self.transform(picture)


def library(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == name.partition(".")[0]:
            raise MissingLibraryError(
                f"{name} is not installed; install it with: pip install {install}"
            ) from error
        raise MissingLibraryError(f"{name} needs {error.name}, which is not installed") from error


def near(name: str, known: Sequence[str]) -> list[str]:
    """Return up to four of the ``known`` names that are most similar to ``name``, whatever their case."""
    lower = {one.lower(): one for one in known}
    return [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=4)]


def unknown_model(
    library: str, name: str, known: Sequence[str], examples: Sequence[str] = ()
) -> ArgumentValueError:
    """Return the error for a name that a library does not have; it lists the most similar names.

    Args:
        library: the library, as the message names it.
        name: the name.
        known: the names that it has.
        examples: names to list if none is similar; empty: the first of ``known``.
    """
    first = examples or known
    similar = [one for one in first if one.startswith(name)][:4] or near(name, known)
    hint = (
        f"did you mean {', '.join(similar)}?"
        if similar
        else f"it has {', '.join(list(first)[:8])} ..."
    )
    return ArgumentValueError(f"{library} has no model {name!r}; {hint}")
