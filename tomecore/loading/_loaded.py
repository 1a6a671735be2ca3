"""What the tools need of a model, whichever library it comes from."""

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
    """A model, and how it is fed.

    Args:
        name: as it was asked for.
        model: in evaluation mode, on the CPU.
        preprocess: from an image to the model's input.
        transform: the library's own way from an image to (C, H, W) float32, where it has one.
    """

    name: str
    model: Any
    preprocess: Preprocess
    transform: Callable[[Any], np.ndarray] | None = field(default=None, repr=False)

    @property
    def framework(self) -> str:
        """ "torch" or "paddle"."""
        return framework_of(self.model)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return (self.preprocess.channels, *self.preprocess.size)

    def image(self, picture: Any) -> np.ndarray:
        """An image of Pillow as the model's input, (C, H, W) float32."""
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
