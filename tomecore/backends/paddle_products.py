"""Products of Paddle in the precision of their dtype: on a GPU, Paddle's default for float32 is TF32."""

from __future__ import annotations

import os
from typing import Any

import paddle
from paddle import bfloat16, concat, float32, matmul

from tomecore.backends import Array
from tomecore.backends.partial_products import factors

__all__ = ["off_cpu", "place_of", "products", "sums_of_equals"]


#: not public, but Paddle's attention reads it; the name without the last "_" has no place in 3.3's graphs
_current_place = getattr(
    paddle.framework, "_current_expected_place_", paddle.framework._current_expected_place
)


def place_of(x: Array) -> Any:
    """Return the place of ``x``; in a static graph, Paddle's current device, for which it chooses kernels."""
    return x.place if paddle.in_dynamic_mode() else _current_place()


def off_cpu(x: Array) -> bool:
    """Whether ``x`` is on a device other than a CPU."""
    return not place_of(x).is_cpu_place()


def tf32() -> bool:
    """Whether Paddle may multiply float32 in TF32, which keeps 11 of 24 bits: the default on a GPU."""
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    return bool(paddle.base.core.get_cublas_switch())


def products(a: Array, b: Array) -> Array:
    """Return products of pairs, (B, s, D) and (B, t, D) -> (B, s, t), in float32 if that is their dtype.

    It changes no global switch, because other threads would see that. In eager mode it turns AMP off, which
    would cast the matmul.
    """
    if a.dtype != float32 or not off_cpu(a):
        return matmul(a, b, transpose_y=True)
    multiply = _by_parts if tf32() else _plain
    if not paddle.in_dynamic_mode():
        return multiply(a, b)
    with paddle.amp.auto_cast(enable=False):
        return multiply(a, b)


def sums_of_equals(equal: Array, x: Array) -> Array:
    """Return ``equal`` (B, s, t), of zeros and ones, times ``x`` (B, t, C), in the precision of its dtype."""
    if x.dtype == float32 and off_cpu(x) and tf32():
        equal, x = concat([equal] * 3, axis=2), concat(list(_parts(x)), axis=1)
    if not paddle.in_dynamic_mode():
        return matmul(equal, x)
    with paddle.amp.auto_cast(enable=False):
        return matmul(equal, x)


def _plain(a: Array, b: Array) -> Array:
    return matmul(a, b, transpose_y=True)


def _by_parts(a: Array, b: Array) -> Array:
    """Multiply parts of 8 bits in one product; see ``partial_products.py``."""
    parts_of_a, parts_of_b = factors(_parts(a), _parts(b))
    return matmul(concat(parts_of_a, axis=2), concat(parts_of_b, axis=2), transpose_y=True)


def _parts(x: Array) -> tuple[Array, Array, Array]:
    first = x.astype(bfloat16).astype(float32)
    rest = x - first
    second = rest.astype(bfloat16).astype(float32)
    return first, second, rest - second
