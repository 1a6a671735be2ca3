"""JAX: the ``.at`` updates, which accumulate repeated indices and differentiate."""

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


# Arrays made without a device follow the committed ones they meet; a tracer has no device to ask for.
BACKEND = Backend(
    "jax", xp, scatter_add, scatter_max, detach=jax.lax.stop_gradient, device=lambda x: None
)
