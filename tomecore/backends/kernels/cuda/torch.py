"""Match and merge PyTorch arrays on a GPU by the Triton kernels, or say that the calls must do it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings

import torch

from tomecore.backends import Fused, Keys, Sizes, Tokens
from tomecore.backends.kernels.cpu.fused import fits
from tomecore.backends.kernels.cpu.torch import transformed, watched

__all__ = ["DEVICES", "bias_dtype", "match_and_merge"]

#: kinds of devices on which the kernels are used
DEVICES = {"cuda"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: largest number of even tokens, and largest width of a key, for which a kernel has enough registers
_MOST_EVENS, _WIDEST_KEY = 2048, 4096
#: the lowest architecture for which the kernels are compiled in tests
_ARCHITECTURE = (8, 0)
#: whether a kernel has failed to compile or to start, so that none is used any more
_failed: list[bool] = []


def match_and_merge(
    keys: Keys, x: Tokens, size: Sizes | None, r: int, protected: int
) -> Fused | None:
    """Match by the keys' cosine and merge r tokens, in four kernels; return None if they cannot.

    The result has no ``source``. Gradients flow to ``x``. In training it must not depend on whether gradients
    are enabled, because a checkpoint computes a block both with and without.

    Args:
        keys: the keys that tokens are compared by.
        x: (B, N, C).
        size: (B, N) float32, 0 for padding; None: all tokens have size 1.
        r: 0 < r <= (N - protected) // 2.
        protected: number of prefix tokens, which do not merge.
    """
    if torch.compiler.is_dynamo_compiling():
        if not _traceable(x.device.index):
            return None
    elif watched() or not available() or not _is_new_enough(x.device.index):
        return None
    if not _admits(keys, x, size, protected):
        return None
    key = _by_head(keys)
    key = key.detach() if key.requires_grad else key
    dtype, operation = bias_dtype(x), torch.ops.tomecore.match_and_merge
    if torch.compiler.is_dynamo_compiling():
        found = operation(key, x, size, r, protected, dtype)
    else:
        try:
            found = operation(key, x, size, r, protected, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (a compiler or a driver may raise anything)
            _warn("cannot run", error)
            return None
    merged, sizes, bias, tokens, into, slots = found
    return Fused(tokens, into, None, merged, sizes, bias, slots)


def bias_dtype(x: Tokens) -> torch.dtype:
    """Return the dtype of attention's queries for tokens ``x`` on a GPU: under autocast, its dtype."""
    kind: str = x.device.type
    dtype: torch.dtype = x.dtype
    if dtype == torch.float64 or not torch.is_autocast_enabled(kind):  # autocast leaves float64
        return dtype
    return torch.get_autocast_dtype(kind)


def _admits(keys: Keys, x: Tokens, size: Sizes | None, protected: int) -> bool:
    """Whether the kernels can read these arrays."""
    arrays = (keys.array, x) if size is None else (keys.array, x, size)
    for array in arrays:
        if type(array) is not torch.Tensor or array.device != x.device or array.stride(-1) != 1:
            return False
        if array.dtype not in _DTYPES:
            return False
    if size is not None and (not size.is_contiguous() or size.dtype != torch.float32):
        return False
    if size is not None and size.requires_grad:
        return False
    batch, count, _ = x.shape
    width = keys.array.shape[-1] // (keys.heads if keys.axis is None else 1)
    evens = (count - protected - protected % 2 + 1) // 2
    return evens <= _MOST_EVENS and width <= _WIDEST_KEY and fits(keys, batch, count)


def _by_head(keys: Keys) -> torch.Tensor:
    """Return a view of the keys, (B, H, N, D)."""
    key: torch.Tensor = keys.array
    if keys.axis is None:
        key = key.reshape(key.shape[0], key.shape[1], keys.heads, -1)
        return key.transpose(1, 2)
    return key if keys.axis == 1 else key.transpose(1, 2)


@functools.cache
def _import() -> bool:
    """Whether the operations are registered; warns if Triton is installed and cannot be imported."""
    if os.environ.get("TOMECORE_KERNELS", "1") == "0" or torch.version.cuda is None:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        importlib.import_module("tomecore.backends.kernels.cuda.torch_operations")
    except Exception as error:  # noqa: BLE001 (an installation may be broken in any way)
        _warn("cannot be imported", error)
        return False
    return True


def available() -> bool:
    """Whether the kernels can be used on a GPU that is new enough."""
    return _import() and not _failed


@functools.cache
def _is_new_enough(index: int) -> bool:
    """Whether the kernels are compiled for this device."""
    return torch.cuda.get_device_capability(index) >= _ARCHITECTURE


@functools.cache
def _runs(index: int) -> bool:
    """Whether the kernels run on this device, by running them."""
    x = torch.zeros((1, 16, 16), device=torch.device("cuda", index))
    try:
        torch.ops.tomecore.match_and_merge(x[:, None], x, None, 4, 1, x.dtype)
    except Exception as error:  # noqa: BLE001 (a compiler or a driver may raise anything)
        _warn("cannot run", error)
        return False
    return True


def _traceable(index: int) -> bool:
    """Whether a compiled graph may contain the operation, which nothing can replace by the calls later.

    An exported program may run without tomecore or Triton, so it consists of the calls.
    """
    if torch.compiler.is_exporting() or transformed():
        return False
    return available() and _is_new_enough(index) and _runs(index)


def _warn(what: str, error: Exception) -> None:
    """Give up the kernels, and warn."""
    _failed.append(True)
    warnings.warn(
        f"tomecore's kernels for GPUs {what} ({type(error).__name__}: {error}), so merging uses PyTorch's "
        "calls: the same numbers, slower. Check the installation of Triton; TOMECORE_KERNELS=0 turns the "
        "kernels off.",
        RuntimeWarning,
        stacklevel=3,
    )


# The effect of ``torch.compiler.assume_constant_result``, which would import all of Dynamo.
_traceable._dynamo_marked_constant = True  # type: ignore[attr-defined]
