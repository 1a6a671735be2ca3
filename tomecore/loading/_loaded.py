"""A loaded model with all that the tools need, from any library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tomecore.errors import TomeError
from tomecore.frameworks import framework_of
from tomecore.loading.images import Preprocess

__all__ = ["Loaded", "library"]


@dataclass(frozen=True)
class Loaded:
    """A model, and how to prepare its input.

    Args:
        name: the name that it was loaded by.
        model: the model, in evaluation mode, on the CPU.
        preprocess: turns an image into the model's input.
        transform: the library's own function from an image to (C, H, W) float32, if it has one.
    """

    name: str
    model: Any
    preprocess: Preprocess
    transform: Callable[[Any], np.ndarray] | None = field(default=None, repr=False)

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
            raise TomeError(
                f"{name} is not installed; install it with: pip install {install}"
            ) from error
        raise TomeError(f"{name} needs {error.name}, which is not installed") from error
