"""NumPy: the unbuffered ufunc methods, which accumulate repeated indices."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from tomecore.backends import Array, Backend


def _at(ufunc: np.ufunc, base: Array, index: Array, updates: Array) -> Array:
    """Scatter with a ufunc. NumPy has no graphs, so reading the batch size is safe, and faster."""
    out = np.array(base)
    ufunc.at(out, (np.arange(index.shape[0])[:, None], index), updates)
    return out


class NumpyBackend(Backend):
    """NumPy with real scatters."""

    def scatter_add(self, base: Array, index: Array, updates: Array) -> Array:
        return _at(np.add, base, index, updates)

    def scatter_max(self, base: Array, index: Array, updates: Array) -> Array:
        return _at(np.maximum, base, index, updates)


BACKEND = NumpyBackend("numpy", xp)
