"""JAX: the ``.at`` updates, which accumulate repeated indices and differentiate; full precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as xp

from tomecore.backends import Array, Backend


class JaxBackend(Backend):
    """JAX with real scatters, and products that do not follow its default precision."""

    def scatter_add(self, base: Array, index: Array, updates: Array) -> Array:
        return base.at[self.batch_index(index), index].add(updates)

    def scatter_max(self, base: Array, index: Array, updates: Array) -> Array:
        return base.at[self.batch_index(index), index].max(updates)

    def products(self, a: Array, b: Array) -> Array:
        """In float32, where the default is TF32 on a GPU and bfloat16 on a TPU."""
        b = xp.permute_dims(b, (0, 2, 1))
        return xp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def detach(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def device(self, x: Array) -> Any:
        """None: a tracer has no device, and arrays made without one follow the committed ones they meet."""
        return None


BACKEND = JaxBackend("jax", xp)
