"""JAX: ``.at`` updates, which accumulate repeated indices and differentiate; products in full precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as xp
import numpy as np

from tomecore.backends import Array, Backend, Index, TokenKeys, Tokens


class JaxBackend(Backend):
    """JAX with real scatters, and products in full precision."""

    def scatter_add(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        return base.at[self.batch_index(index), index].add(updates)

    def scatter_max(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        return base.at[self.batch_index(index), index].max(updates)

    def products(self, a: TokenKeys, b: TokenKeys) -> Array:
        """Return products of pairs in float32; JAX's default is TF32 on a GPU and bfloat16 on a TPU."""
        b = xp.permute_dims(b, (0, 2, 1))
        return xp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def detach(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)

    def device(self, x: Array) -> Any:
        """Return None: a tracer has no device, and JAX moves uncommitted arrays to that of the others."""
        return None

    def host_values(self, x: Any) -> Any:
        """Return the values, unless ``x`` is a tracer or lies on another device than a CPU."""
        if isinstance(x, jax.core.Tracer):
            return None
        if isinstance(x, jax.Array):
            on_cpu = all(device.platform == "cpu" for device in x.devices())
            return np.asarray(x) if on_cpu and x.is_fully_addressable else None
        return Backend.host_values(self, x)


BACKEND = JaxBackend("jax", xp)
