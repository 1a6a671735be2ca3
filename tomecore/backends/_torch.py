"""PyTorch: index_add on flat rows (5 to 10 times faster on a CPU than scatter_reduce).

This module is array-api-compat's namespace with one function replaced: see ``take_along_axis``.
"""

from __future__ import annotations

import sys

import torch
from array_api_compat.torch import *  # noqa: F403

from tomecore.backends import Array, Backend


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """gather; ``torch.take_along_dim`` broadcasts, which fixes the batch size in an exported graph."""
    return torch.gather(x, axis, indices)


def scatter_add(base: Array, index: Array, updates: Array) -> Array:
    rows, width = base.shape[1], base.shape[2]
    flat = (index + rows * BACKEND.samples(index)).reshape(-1)
    added = base.reshape(-1, width).index_add(0, flat, updates.reshape(-1, width))
    return added.reshape(base.shape)


def scatter_max(base: Array, index: Array, updates: Array) -> Array:
    index = index[:, :, None].expand(-1, -1, base.shape[2])
    return base.scatter_reduce(1, index, updates, reduce="amax", include_self=True)


def _detach(x: Array) -> Array:
    return x.detach()


def _device(x: Array) -> torch.device:
    return x.device


BACKEND = Backend(
    "torch",
    sys.modules[__name__],
    scatter_add,
    scatter_max,
    detach=_detach,
    device=_device,
)
