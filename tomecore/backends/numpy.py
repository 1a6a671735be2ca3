"""NumPy: the unbuffered ufunc methods, which accumulate repeated indices."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from tomecore.backends import Array, Backend


class NumpyBackend(Backend):
    """NumPy with real scatters."""

    def scatter_add(self, base: Array, index: Array, updates: Array) -> Array:
        return self._at(np.add, base, index, updates)

    def scatter_max(self, base: Array, index: Array, updates: Array) -> Array:
        return self._at(np.maximum, base, index, updates)

    def _at(self, ufunc: np.ufunc, base: Array, index: Array, updates: Array) -> Array:
        out = np.array(base)
        ufunc.at(out, (self.batch_index(index), index), updates)
        return out


BACKEND = NumpyBackend("numpy", xp)
