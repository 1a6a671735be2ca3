"""The array libraries every test outside ``tests/integration`` runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import torch

__all__ = ["LIBRARIES", "Library"]


@dataclass(frozen=True)
class Library:
    """One array library: its name as ``Backend.name`` has it, and the way there and back."""

    name: str
    to_array: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]
    gradient: Callable[[Callable[[Any], Any], np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        return self.name


def _read_only(values: np.ndarray) -> np.ndarray:
    """A copy that raises when written to, so that every test on NumPy is a test of not mutating."""
    array = np.array(values)
    array.setflags(write=False)
    return array


def _torch_gradient(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    variable = torch.tensor(x, requires_grad=True)
    function(variable).sum().backward()
    return variable.grad.numpy()


def _paddle_gradient(function: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    variable = paddle.to_tensor(x, stop_gradient=False)
    function(variable).sum().backward()
    return variable.grad.numpy()


LIBRARIES = {
    "numpy": Library("numpy", _read_only, np.asarray),
    "torch": Library(
        "torch", torch.tensor, lambda array: array.detach().cpu().numpy(), _torch_gradient
    ),
    "paddle": Library("paddle", paddle.to_tensor, lambda array: array.numpy(), _paddle_gradient),
}
