"""NumPy: the unbuffered ufunc methods, which accumulate repeated indices."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from tomecore.backends import Array, Backend, Index, Tokens


def _at(ufunc: np.ufunc, base: Array, index: Array, updates: Array) -> Array:
    """Scatter with a ufunc into a copy of ``base``. NumPy has no graphs, so it may read the batch size."""
    out = np.array(base)
    ufunc.at(out, (np.arange(index.shape[0])[:, None], index), updates)
    return out


class NumpyBackend(Backend):
    """NumPy with real scatters."""

    def scatter_add(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        return _at(np.add, base, index, updates)

    def scatter_max(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        return _at(np.maximum, base, index, updates)


BACKEND = NumpyBackend("numpy", xp)
