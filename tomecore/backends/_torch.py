"""PyTorch: index_add on flat rows (5 to 10 times faster on a CPU than scatter_reduce)."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch

from tomecore.backends import Array, Backend


def scatter_add(base: Array, index: Array, updates: Array) -> Array:
    rows, width = base.shape[1], base.shape[2]
    flat = (index + rows * BACKEND.samples(index)).reshape(-1)
    added = base.reshape(-1, width).index_add(0, flat, updates.reshape(-1, width))
    return added.reshape(base.shape)


def scatter_max(base: Array, index: Array, updates: Array) -> Array:
    index = index[:, :, None].expand(-1, -1, base.shape[2])
    return base.scatter_reduce(1, index, updates, reduce="amax", include_self=True)


BACKEND = Backend(
    "torch", xp, scatter_add, scatter_max, detach=torch.Tensor.detach, device=lambda x: x.device
)
