"""PyTorch: index_add on flat rows (5 to 10 times faster on a CPU than scatter_reduce).

This module is the namespace of array-api-compat with a few functions replaced. The backend follows
them.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from typing import Any

import torch
from array_api_compat.torch import *  # noqa: F403
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tomecore.backends import Array, Backend, Fused, Index, Keys, Rows, Sizes, TokenKeys, Tokens
from tomecore.backends.constants import ConstantCache
from tomecore.backends.kernels.cpu.fused import match_and_merge
from tomecore.backends.kernels.cpu.torch import memory
from tomecore.backends.kernels.cuda import torch as on_gpu
from tomecore.backends.torch_onnx import match_and_merge_for_onnx
from tomecore.backends.torch_products import may_reduce, products
from tomecore.backends.torch_rows import LARGEST_R, average_rows, rows_of_pairs
from tomecore.errors import UnsupportedModelError


def tracing() -> bool:
    """Whether this thread traces a graph.

    ``torch.compiler.is_compiling`` is also true while another thread traces. Tracers other than Dynamo run
    under a dispatch mode, which belongs to one thread.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return True
    return _get_current_dispatch_mode() is not None and torch.compiler.is_compiling()


def take_along_axis(x: Array, indices: Array, /, *, axis: int = -1) -> Array:
    """Gather without broadcasting, which would fix the batch size in an exported graph."""
    return torch.gather(x, axis, indices)


def argsort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """Return the order of a stable sort. ONNX exports it as TopK, which takes the lower index in a tie."""
    if torch.onnx.is_in_onnx_export():
        return torch.topk(x, x.shape[axis], dim=axis, largest=descending).indices
    return torch.argsort(x, dim=axis, descending=descending, stable=stable)


def sort(x: Array, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """Return the sorted values. ``stable`` is not passed on: ONNX lacks it, and the values are the same."""
    return torch.sort(x, dim=axis, descending=descending).values


def astype(x: Array, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Array:
    if x.dtype == dtype and device is None and not copy:
        return x
    return x.to(device=device, dtype=dtype, copy=copy)


def clip(x: Array, /, min: float | None = None, max: float | None = None) -> Array:
    return torch.clamp(x, min=min, max=max)


def take(x: Array, indices: Array, /, *, axis: int) -> Array:
    """Take along an axis. Indices must be 0 or more, which saves three steps of array-api-compat."""
    return torch.index_select(x, axis, indices)


def sum(x: Array, /, *, axis: int, keepdims: bool = False) -> Array:
    """Sum over an axis; up to six heads are added one by one, which is 3 times faster on a CPU."""
    few = len(x.shape) == 4 and axis in (1, 2) and x.shape[axis] <= 6 and x.is_cpu
    if keepdims or not few or tracing():
        return torch.sum(x, dim=axis, keepdim=keepdims)
    total, *rest = x.unbind(axis)
    for index, head in enumerate(rest):
        total = total + head if index == 0 else total.add_(head)
    return total


#: whether a tensor stands for others, as within torch.func.vmap, so that its values cannot be read
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def _check_sums() -> None:
    """Raise in the old ONNX exporter, which keeps only one of several tokens that merge into one."""
    if torch.compiler.is_dynamo_compiling() or not torch.jit.is_tracing():
        return
    if torch.onnx.is_in_onnx_export():
        raise UnsupportedModelError(
            "torch.onnx.export(dynamo=False) exports wrong sums if several tokens merge into one. "
            "Export with dynamo=True, or set model.r = 0."
        )


# Torch follows the standard for tomecore's arguments; the wrappers would cost as much as the work.
concat = torch.concat
permute_dims = torch.permute
reshape = torch.reshape
where = torch.where
zeros_like = torch.zeros_like


#: index constants of all devices
CONSTANTS = ConstantCache(2**21)
#: constants of GPUs that have a row for each token of a batch
ROWS = ConstantCache(2**24)


def arange(
    start: int, stop: int | None = None, step: int = 1, *, dtype: Any = None, device: Any = None
) -> Array:
    """Return a range, cached for each stream; nothing writes to it.

    It is computed again while operations are recorded, without a device, and while a CUDA graph is captured,
    which has its own memory.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    stream = None if device is None else _stream(device)
    if stream is None:
        return torch.arange(start, stop, step, dtype=dtype, device=device)
    key = start, stop, step, dtype, device, stream
    found = CONSTANTS.get(key)
    return _make_range(key, 1) if found is None else found


def _make_range(key: tuple[Any, ...], batch: int) -> Array:
    """Return a new range, whose memory the samples of a batch share, and cache it."""
    start, stop, step, dtype, device, _ = key[-6:]
    with torch.inference_mode(False):  # otherwise autograd could not use it later
        made = torch.arange(start, stop, step, dtype=dtype, device=device)
        size = made.nbytes
        made = made if len(key) == 6 else made.expand(batch, -1)
    return CONSTANTS.put(key, made, size)


def constant(build: Callable[..., Any], *shape: int, device: torch.device) -> Any:
    """Return ``build(*shape, device)``, a tensor or a tuple of tensors, cached as :func:`arange` is."""
    stream = _stream(device)
    if stream is None:
        return build(*shape, device)
    key = build.__name__, *shape, device, stream
    found = ROWS.get(key)
    if found is not None:
        return found
    with torch.inference_mode(False):
        made = build(*shape, device)
    tensors = made if isinstance(made, tuple) else (made,)
    return ROWS.put(key, made, builtins.sum(tensor.nbytes for tensor in tensors))


def _stream(device: torch.device) -> int | None:
    """Return the stream whose operations may share a constant; None if it must be computed again.

    A CPU has no stream, and 0 stands for it.
    """
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
        return None
    if _get_current_dispatch_mode() is not None:
        return None
    if device.type == "cpu":
        return 0
    if device.type != "cuda" or device.index is None or _capturing():
        return None
    return _current_stream(device.index)


def _capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _current_stream(index: int) -> int:
    """Return the stream, by the fast function of compiled graphs, which does not create an object."""
    stream: int = torch._C._cuda_getCurrentRawStream(index)
    return stream


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function while a graph is traced, instead of tracing it."""
    return function(*arguments)


#: for the compiled kernels
MEMORY = memory(products, may_reduce)


class TorchBackend(Backend):
    """PyTorch's own forms of most operations, and the namespace of this module.

    ``by_rows_on``: the types of devices on which eager mode merges by ``torch_rows.py``.
    """

    by_rows_on = frozenset({"cuda"})

    def by_rows(self, x: Array) -> bool:
        """Whether eager mode merges tokens like ``x`` by ``torch_rows.py``."""
        if x.device.type not in self.by_rows_on or tracing() or _is_wrapped(x):
            return False
        if x.shape[0] == 0:
            return False
        return not torch.onnx.is_in_onnx_export()

    def scatter_add(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        """Add ``updates`` on flat rows.

        For ONNX it is a product: ``index_add`` becomes ScatterND, which in onnxruntime (1.32) loses sums if
        several threads write to one row.
        """
        _check_sums()
        if torch.onnx.is_in_onnx_export():
            return Backend.scatter_add(self, base, index, updates)
        rows = self.flat_rows(index, base.shape[1])
        updates = updates.reshape(-1, base.shape[2])
        return base.reshape(-1, base.shape[2]).index_add(0, rows, updates).reshape(base.shape)

    def scatter_max(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        index = index[:, :, None].expand(-1, -1, base.shape[2])
        return base.scatter_reduce(1, index, updates, reduce="amax", include_self=True)

    def accumulate(self, base: Array, rows: Array, updates: Array) -> Array:
        _check_sums()
        return base.index_add_(0, rows, updates)

    def accumulate_2d(self, base: Sizes, index: Index, updates: Sizes) -> Sizes:
        _check_sums()
        return base.scatter_add_(1, index, updates)

    def accumulates(self, base: Array) -> bool:
        return not torch.onnx.is_in_onnx_export()

    def detach(self, x: Array) -> Array:
        return x.detach() if x.requires_grad or tracing() else x

    def device(self, x: Array) -> Any:
        return x.device

    def batch_index(self, index: Index) -> Array:
        return arange(index.shape[0], dtype=index.dtype, device=index.device)[:, None]

    def batched_arange(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Return the range as a view that the samples of a batch share."""
        batch, dtype, device = index.shape[0], index.dtype, index.device
        stream = _stream(device)
        if stream is None:
            return torch.arange(start, stop, step, dtype=dtype, device=device).expand(batch, -1)
        key = batch, start, stop, step, dtype, device, stream
        found = CONSTANTS.get(key)
        return _make_range(key, batch) if found is None else found

    def flat_rows(self, index: Index, rows: int) -> Array:
        """Return the rows; for a single sample they are the index itself."""
        batch = index.shape[0]
        if _stream(index.device) is None:
            return Backend.flat_rows(self, index, rows)
        if batch == 1:
            return index.reshape(-1)
        return (index + self.first_rows(index, rows)).reshape(-1)

    def first_rows(self, index: Index, rows: int) -> Array:
        if _stream(index.device) is None:
            return Backend.first_rows(self, index, rows)
        stop = index.shape[0] * rows
        return arange(0, stop, rows, dtype=index.dtype, device=index.device)[:, None]

    def every_second(self, x: TokenKeys, first: int) -> TokenKeys:
        """Return a view, which products do not copy; while tracing a copy, as a slice would add a graph."""
        if tracing():
            return torch.index_select(x, 1, torch.arange(first, x.shape[1], 2, device=x.device))
        return x[:, first::2]

    def permute(self, index: Index, values: Index) -> Index:
        return torch.scatter(values, 1, index, values)

    def products(self, a: TokenKeys, b: TokenKeys) -> Array:
        return products(a, b)

    def norm(self, x: TokenKeys) -> Array:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def max_rows(self, x: Array) -> tuple[Array, Array | None]:
        """Return maxima and positions; None for many numbers on a CPU, where they take four times as long."""
        if x.is_cpu and not tracing() and x.numel() > 2**14:
            return torch.amax(x, 2), None
        return torch.max(x, 2)

    def argmax_rows(self, x: Array, where: Array | None, index: Index) -> Index:
        """Return positions of maxima; if ``where`` is unknown, only the rows ``index`` are searched."""
        if where is not None:
            return torch.gather(where, 1, index)
        rows = x.reshape(-1, x.shape[2]).index_select(0, self.flat_rows(index, x.shape[1]))
        return rows.argmax(1).view(index.shape)

    def sum_in(self, x: Array, axis: int, dtype: Any) -> Array:
        if self.by_rows(x):
            return torch.sum(x, axis, dtype=dtype)
        return Backend.sum_in(self, x, axis, dtype)

    def rows_of_pairs(
        self, order: Index, partner: Index, r: int, protected: int, tokens: int
    ) -> Rows | None:
        if r > LARGEST_R or not self.by_rows(order):
            return None
        return rows_of_pairs(constant, order, partner, r, protected, tokens)

    def slots_of_rows(self, rows: Rows, num_tokens: int, num_slots: int) -> Index:
        """Return the slots, written to the rows of their tokens in two launches."""
        into = rows.into.view(-1, num_tokens - num_slots)
        into = into - self.first_rows(into, num_slots)
        slots = into.new_empty(into.shape[0] * num_tokens)
        own = self.batched_arange(into, 0, num_slots, 1)
        slots[rows.kept.view(-1, num_slots)] = own
        slots[rows.pairs.view(2, *into.shape)[0]] = into
        return slots.view(-1, num_tokens)

    def average_rows(
        self, plan: Any, x: Tokens, size: Sizes | None, padded: bool
    ) -> tuple[Tokens, Sizes] | None:
        usual = 0 < plan.num_merged <= LARGEST_R and not plan.keep_norm
        if not usual or not self.by_rows(x):
            return None
        arrays = (size, plan.mean_weight, plan.size_weight, plan.rows.kept, plan.rows.into)
        if builtins.any(array is not None and _is_wrapped(array) for array in arrays):
            return None
        return average_rows(plan, x, size, padded)

    def host_values(self, x: Any) -> Any:
        if tracing() or _get_current_dispatch_mode() is not None:
            return None
        if type(x) is torch.Tensor and x.is_cpu and not _is_wrapped(x):
            return x.detach().numpy()
        return Backend.host_values(self, x)

    def fused(
        self,
        keys: Keys,
        x: Tokens,
        size: Sizes | None,
        source: Callable[[], Index] | None,
        r: int,
        protected: int,
    ) -> Fused | None:
        if torch.onnx.is_in_onnx_export() and tracing() and not torch.jit.is_tracing():
            return match_and_merge_for_onnx(keys, x, size, r, protected)
        if self.fuses_fully(x):
            return on_gpu.match_and_merge(keys, x, size, r, protected)
        return match_and_merge(MEMORY, keys, x, size, source, r, protected)

    def fuses_fully(self, x: Tokens) -> bool:
        return x.device.type in on_gpu.DEVICES

    def on_host(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _call(function, *arguments)


BACKEND = TorchBackend("torch", sys.modules[__name__])
