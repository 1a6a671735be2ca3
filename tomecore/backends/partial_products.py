"""The product of two float32 arrays from products of parts with 8 bits, which TF32 and bfloat16 hold exactly.

A float32 is the sum of three such parts. Of the nine products of parts, the three smallest are below its
rounding. The six others lie in one inner dimension, the small ones first, so that their sum runs in float32
and loses least.
"""

from __future__ import annotations

from typing import Any

__all__ = ["factors"]

Array = Any
Parts = tuple[Array, Array, Array]


def factors(a: Parts, b: Parts) -> tuple[list[Array], list[Array]]:
    """Return what to concatenate along the inner dimensions of a and b; parts are given the largest first."""
    a0, a1, a2 = a
    b0, b1, b2 = b
    return [a2, a1, a0, a1, a0, a0], [b0, b1, b2, b0, b1, b0]
