"""JAX: ``.at`` updates, which accumulate repeated indices and differentiate; products in full precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as xp

from tomecore.backends import Array, Backend


class JaxBackend(Backend):
    """JAX with real scatters, and products in full precision."""

    def scatter_add(self, base: Array, index: Array, updates: Array) -> Array:
        return base.at[self.batch_index(index), index].add(updates)

    def scatter_max(self, base: Array, index: Array, updates: Array) -> Array:
        return base.at[self.batch_index(index), index].max(updates)

    def products(self, a: Array, b: Array) -> Array:
        """Multiply in float32; JAX's default is TF32 on a GPU and bfloat16 on a TPU."""
        b = xp.permute_dims(b, (0, 2, 1))
        return xp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def detach(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def device(self, x: Array) -> Any:
        """Return None: a tracer has no device, and JAX moves uncommitted arrays to that of the others."""
        return None


BACKEND = JaxBackend("jax", xp)
