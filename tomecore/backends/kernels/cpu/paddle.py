"""Layout and allocation of Paddle arrays in the memory of a CPU, for the compiled kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import paddle
from paddle import float32, int64, matmul

from tomecore.backends import Array
from tomecore.backends.kernels.cpu.fused import ArrayMemory, Workspace

__all__ = ["MEMORY"]


def _elements(*arrays: Array) -> list[str] | None:
    """Return the dtypes for the kernels; None if they cannot run.

    A static graph has no memory yet, and Paddle has no half precision on a CPU.
    """
    if not paddle.in_dynamic_mode():
        return None
    gradients = paddle.is_grad_enabled() and not arrays[0].stop_gradient
    for x in arrays:
        if gradients or x.dtype != float32 or not x.place.is_cpu_place():
            return None
    return ["float32"] * len(arrays)


def _empty(like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
    return paddle.empty(shape, dtype=int64 if dtype == "int64" else float32, device="cpu")


def _space(x: Array, batch: int, evens: int, odds: int, width: int) -> Workspace:
    even, odd = _empty(x, (batch, evens, width), None), _empty(x, (batch, odds, width), None)
    return Workspace(even, odd, functools.partial(matmul, even, odd, transpose_y=True))


def _strides(x: Array) -> Sequence[int]:
    found: Sequence[int] = x.strides
    return found


def _threads() -> int:
    """Return 1: Paddle's calls on a CPU run on one thread, except for products, which run here too."""
    return 1


MEMORY = ArrayMemory(_elements, _strides, _empty, _space, _threads)
