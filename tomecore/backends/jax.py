"""JAX: the ``.at`` updates, which accumulate repeated indices and differentiate; full precision."""

from __future__ import annotations

import jax
import jax.numpy as xp

from tomecore.backends import Array, Backend


def _batch(index: Array) -> Array:
    return xp.arange(index.shape[0])[:, None]


def scatter_add(base: Array, index: Array, updates: Array) -> Array:
    return base.at[_batch(index), index].add(updates)


def scatter_max(base: Array, index: Array, updates: Array) -> Array:
    return base.at[_batch(index), index].max(updates)


def products(a: Array, b: Array) -> Array:
    """In float32, where the default is TF32 on a GPU and bfloat16 on a TPU."""
    return xp.matmul(a, xp.permute_dims(b, (0, 2, 1)), precision=jax.lax.Precision.HIGHEST)


# Arrays made without a device follow the committed ones they meet; a tracer has no device to ask for.
BACKEND = Backend(
    "jax",
    xp,
    scatter_add,
    scatter_max,
    detach=jax.lax.stop_gradient,
    device=lambda x: None,
    products=products,
)
