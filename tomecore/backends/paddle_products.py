"""Products of Paddle in the precision of their dtype: on a GPU, Paddle's default for float32 is TF32."""

from __future__ import annotations

import os
from typing import Any

import paddle
from paddle import bfloat16, concat, float32, matmul

from tomecore.backends import Array
from tomecore.backends.partial_products import factors

__all__ = ["off_cpu", "place_of", "products"]


#: not public, but what Paddle's attention reads; the name without the last "_" knows no place in 3.3's graphs
_current_place = getattr(
    paddle.framework, "_current_expected_place_", paddle.framework._current_expected_place
)


def place_of(x: Array) -> Any:
    """Where ``x`` is; in a static graph, Paddle's current device, for which kernels are chosen."""
    return x.place if paddle.in_dynamic_mode() else _current_place()


def off_cpu(x: Array) -> bool:
    """Whether ``x`` is elsewhere than on a CPU."""
    return not place_of(x).is_cpu_place()


def tf32() -> bool:
    """Whether Paddle may multiply float32 in TF32, which keeps 11 of 24 bits: by default, where a GPU can."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    return bool(paddle.base.core.get_cublas_switch())


def products(a: Array, b: Array) -> Array:
    """(B, s, D) and (B, t, D) -> (B, s, t): of each pair, in float32 if that is their dtype.

    No switch is turned for it, because other threads would see that. Where operations run at once, AMP is off
    for it: the matmul would be cast.
    """
    if a.dtype != float32 or not off_cpu(a):
        return matmul(a, b, transpose_y=True)
    multiply = _by_parts if tf32() else _plain
    if not paddle.in_dynamic_mode():
        return multiply(a, b)
    with paddle.amp.auto_cast(enable=False):
        return multiply(a, b)


def _plain(a: Array, b: Array) -> Array:
    return matmul(a, b, transpose_y=True)


def _by_parts(a: Array, b: Array) -> Array:
    """One product of parts of 8 bits; see ``partial_products.py``."""
    parts_of_a, parts_of_b = factors(_parts(a), _parts(b))
    return matmul(concat(parts_of_a, axis=2), concat(parts_of_b, axis=2), transpose_y=True)


def _parts(x: Array) -> tuple[Array, Array, Array]:
    first = x.astype(bfloat16).astype(float32)
    rest = x - first
    second = rest.astype(bfloat16).astype(float32)
    return first, second, rest - second
