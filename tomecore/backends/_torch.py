"""PyTorch: index_add on flat rows (5 to 10 times faster on a CPU than scatter_reduce).

This module is array-api-compat's namespace with a few functions replaced: see each.
"""

from __future__ import annotations

import sys

import torch
from array_api_compat.torch import *  # noqa: F403

from tomecore.backends import Array, Backend


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """gather; ``torch.take_along_dim`` broadcasts, which fixes the batch size in an exported graph."""
    return torch.gather(x, axis, indices)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """ONNX has no stable sort, but its TopK is one: on equal values the lower index comes first."""
    if torch.onnx.is_in_onnx_export():
        return torch.topk(x, x.shape[axis], dim=axis, largest=descending).indices
    return torch.argsort(x, dim=axis, descending=descending, stable=stable)


def sort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """Stable or not, the values are the same; ONNX has the other one only."""
    return torch.sort(x, dim=axis, descending=descending).values


def scatter_add(base: Array, index: Array, updates: Array) -> Array:
    rows, updates = _flat(base, index, updates)
    return base.reshape(-1, base.shape[2]).index_add(0, rows, updates).reshape(base.shape)


def accumulate(base: Array, index: Array, updates: Array) -> Array:
    rows, updates = _flat(base, index, updates)
    return base.view(-1, base.shape[2]).index_add_(0, rows, updates).view(base.shape)


def _flat(base: Array, index: Array, updates: Array) -> tuple[Array, Array]:
    """Row numbers and rows of the batch laid end to end."""
    rows = (index + base.shape[1] * BACKEND.samples(index)).reshape(-1)
    return rows, updates.reshape(-1, base.shape[2])


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
    accumulate=accumulate,
)
