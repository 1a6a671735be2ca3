"""NumPy: the unbuffered ufunc methods, which accumulate repeated indices."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from tomecore.backends import Array, Backend


def _at(ufunc: np.ufunc, base: Array, index: Array, updates: Array) -> Array:
    out = np.array(base)
    ufunc.at(out, (np.arange(index.shape[0])[:, None], index), updates)
    return out


def scatter_add(base: Array, index: Array, updates: Array) -> Array:
    return _at(np.add, base, index, updates)


def scatter_max(base: Array, index: Array, updates: Array) -> Array:
    return _at(np.maximum, base, index, updates)


BACKEND = Backend("numpy", xp, scatter_add, scatter_max)
