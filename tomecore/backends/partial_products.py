"""Products of float32 arrays from products of 8-bit parts, which TF32 and bfloat16 represent exactly.

A float32 is the sum of three such parts. Of the nine products of parts, the three smallest are below its
rounding error. The other six are concatenated along the inner dimension, the small ones first, so that their
sum is in float32 and loses least.
"""

from __future__ import annotations

from tomecore.backends.arrays import Array

__all__ = ["factors"]

Parts = tuple[Array, Array, Array]


def factors(a: Parts, b: Parts) -> tuple[list[Array], list[Array]]:
    """Return the parts to concatenate along the inner dimensions of a and b; the largest part comes first."""
    a0, a1, a2 = a
    b0, b1, b2 = b
    return [a2, a1, a0, a1, a0, a0], [b0, b1, b2, b0, b1, b0]
