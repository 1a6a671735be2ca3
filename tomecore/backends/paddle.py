"""Paddle: a small subset of the array API standard, and the scatters.

array-api-compat does not support Paddle, and new names would not be enough: Paddle's defaults differ
too. Each function says what it fixes. This module has only the names that tomecore uses; each behaves
as in the standard for the arguments that it accepts. ``tests/backends`` compares them with NumPy, eagerly
and in a static graph (where the batch size is unknown, so it is not read).

Two things are not fixed, because tomecore does not need them: integer and floating arrays do not mix, and
half precision has no kernels on a CPU.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import paddle
from paddle import (
    bool as bool_,
)
from paddle import (
    concat,
    exp,
    float32,
    float64,
    int64,
    log,
    matmul,
    sqrt,
    where,
)
from paddle.jit.sot import psdb

from tomecore.backends import (
    Array,
    Backend,
    Fused,
    Index,
    Keys,
    Sizes,
    TokenKeys,
    Tokens,
    paddle_products,
)
from tomecore.backends.constants import ConstantCache
from tomecore.backends.kernels.cpu.fused import match_and_merge
from tomecore.backends.kernels.cpu.paddle import MEMORY
from tomecore.backends.paddle_means import by_groups, by_slots
from tomecore.backends.paddle_products import off_cpu
from tomecore.backends.paddle_products import place_of as place_of

__all__ = [
    "arange",
    "argmax",
    "argsort",
    "asarray",
    "astype",
    "bool_",
    "clip",
    "concat",
    "exp",
    "float32",
    "float64",
    "int64",
    "isdtype",
    "log",
    "matmul",
    "max",
    "mean",
    "ones_like",
    "permute_dims",
    "reshape",
    "sort",
    "sqrt",
    "sum",
    "take",
    "take_along_axis",
    "where",
    "zeros_like",
]

_ARANGE_TAKES_DEVICE = "device" in inspect.signature(paddle.arange).parameters
#: read once: a Paddle without CUDA ends the process if a stream is requested
_HAS_STREAMS = paddle.is_compiled_with_cuda()
_INTEGRAL = (paddle.int8, paddle.int16, paddle.int32, paddle.int64, paddle.uint8)
_FLOATING = (paddle.float16, paddle.bfloat16, paddle.float32, paddle.float64)


#: index constants of all devices
CONSTANTS = ConstantCache(2**21)


def arange(
    start: int, stop: int | None = None, step: int = 1, dtype: Any = None, device: Any = None
) -> Array:
    """Return a range on ``device``, cached for each stream.

    An arange of Paddle takes four operations, and nothing writes to its result. In a static graph it is
    computed again.
    """
    start, stop = (0, start) if stop is None else (start, stop)
    stream = None
    if paddle.in_dynamic_mode() and device is not None:
        stream = _stream(device)
    if stream is None:
        return _make_range(start, stop, step, dtype, device)
    key = start, stop, step, dtype, str(device), stream
    found = CONSTANTS.get(key)
    if found is None:
        made = _make_range(start, stop, step, dtype, device)
        found = CONSTANTS.put(key, made, 8 * made.shape[0])
    return found


def _stream(place: Any) -> int | None:
    """Return the stream whose operations may share a constant; None if it must be computed again.

    A CPU has no stream, and 0 stands for it. If ``place`` is not a place, it is a device in the form of
    Paddle's own tensors, and the constant is not shared.
    """
    if not hasattr(place, "is_cpu_place"):
        return None
    if place.is_cpu_place():
        return 0
    if not (place.is_gpu_place() and _HAS_STREAMS):
        return None
    if paddle.base.core.is_cuda_graph_capturing():
        return None
    core: Any = paddle.base.core
    stream = core._get_current_stream(place.gpu_device_id())
    number: int | None = getattr(stream, "cuda_stream", None)
    return number


def _make_range(start: int, stop: int, step: int, dtype: Any, device: Any) -> Array:
    """Return a new range; Paddle before 3.3 creates one only on the global device."""
    if device is None:
        return paddle.arange(start, stop, step, dtype=dtype)
    if _ARANGE_TAKES_DEVICE:
        return paddle.arange(start, stop, step, dtype=dtype, device=device)
    made = paddle.arange(start, stop, step, dtype=dtype)
    return made if made.place == device else made.to(device)


def asarray(values: Any, dtype: Any = None, device: Any = None) -> Array:
    return paddle.to_tensor(values, dtype=dtype, place=device)


def astype(x: Array, dtype: Any, copy: bool = True) -> Array:
    """Return ``x`` in this dtype; with ``copy`` it is a copy even if the dtype is the same."""
    if x.dtype == dtype:
        return paddle.clone(x) if copy else x
    return x.astype(dtype)


def isdtype(dtype: Any, kind: str) -> bool:
    """Whether ``dtype`` is of ``kind``, one of the three that tomecore uses."""
    return dtype in {"real floating": _FLOATING, "integral": _INTEGRAL, "bool": (bool_,)}[kind]


def ones_like(x: Array) -> Array:
    return paddle.ones_like(x)


def zeros_like(x: Array) -> Array:
    return paddle.zeros_like(x)


def argmax(x: Array, axis: int) -> Array:
    return paddle.argmax(x, axis=axis)


def argsort(x: Array, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    """Sort stably, as in the standard; Paddle's default is unstable."""
    if _sorts_rows_apart(x):
        return paddle.argsort(x, axis=axis, descending=descending, stable=stable)
    two = paddle.concat([x, x[:1]], axis=0)
    return paddle.argsort(two, axis=axis, descending=descending, stable=stable)[:-1]


def sort(x: Array, axis: int = -1, descending: bool = False, stable: bool = True) -> Array:
    if _sorts_rows_apart(x):
        return paddle.sort(x, axis=axis, descending=descending, stable=stable)
    two = paddle.concat([x, x[:1]], axis=0)
    return paddle.sort(two, axis=axis, descending=descending, stable=stable)[:-1]


@paddle.jit.not_to_static
def _sorts_rows_apart(x: Array) -> bool:
    """Whether Paddle sorts ``x`` (B, n) without waiting for the device.

    For a single row on a GPU it uses another routine, which allocates memory, waits, and reverses ties in
    descending order. In a static graph the number of rows is not known yet.
    """
    return len(x.shape) != 2 or x.shape[0] > 1 or not off_cpu(x)


def sum(x: Array, axis: int, keepdims: bool = False) -> Array:
    """Sum over an axis; Paddle spells ``keepdims`` as ``keepdim``.

    Over the heads of strided keys (B, N, H, D), a product with ones is 15 times faster on a CPU. On other
    devices it would be a batch of B x N products, rounded to TF32.
    """
    if len(x.shape) == 4 and axis == 2 and not off_cpu(x):
        if paddle.in_dynamic_mode():
            ones = paddle.ones_like(x[:1, :1, :, :1]).transpose([0, 1, 3, 2])
        else:
            ones = paddle.ones([1, 1, 1, x.shape[2]], dtype=x.dtype)
        found = paddle.matmul(ones, x)
        return found if keepdims else paddle.squeeze(found, 2)
    return paddle.sum(x, axis=axis, keepdim=keepdims)


def mean(x: Array, axis: int, keepdims: bool = False) -> Array:
    return paddle.mean(x, axis=axis, keepdim=keepdims)


def clip(x: Array, min: float | None = None, max: float | None = None) -> Array:
    return paddle.clip(x, min=min, max=max)


def max(x: Array, axis: int, keepdims: bool = False) -> Array:
    return paddle.max(x, axis=axis, keepdim=keepdims)


def permute_dims(x: Array, axes: Sequence[int]) -> Array:
    """Permute axes, passed as a list: ``Tensor.transpose(0, 2, 1)`` silently swaps only the first two."""
    return paddle.transpose(x, list(axes))


def reshape(x: Array, shape: Sequence[int]) -> Array:
    return paddle.reshape(x, list(shape))


def take(x: Array, indices: Array, axis: int) -> Array:
    """Take along an axis; ``paddle.take`` indexes the flattened array."""
    return paddle.gather(x, indices, axis=axis)


def take_along_axis(x: Array, indices: Array, axis: int) -> Array:
    """Take without broadcasting; Paddle's default repeats a size-1 axis of ``indices``."""
    return paddle.take_along_axis(x, indices, axis, broadcast=False)


def _add_rows(base: Array, rows: Array, updates: Array) -> Array:
    """Return ``base`` with ``updates`` added to its ``rows``; both are (n, C) or (n,).

    For ONNX it uses an operation that becomes ScatterElements: paddle2onnx aborts the process at
    ``index_add``, and ``scatter_nd_add`` becomes ScatterND, which loses updates in onnxruntime if several
    threads write to one row.
    """
    if paddle.in_dynamic_mode() or not exporting_onnx():
        return paddle.index_add(base, rows, 0, updates)
    if len(base.shape) == 2:
        rows = paddle.expand(paddle.unsqueeze(rows, 1), [-1, base.shape[1]])
    return paddle.put_along_axis(base, rows, updates, 0, reduce="add", broadcast=False)


@paddle.jit.not_to_static
def exporting_onnx() -> bool:
    """Whether ``paddle.onnx.export`` is running, according to the stack."""
    if "paddle2onnx" not in sys.modules:
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "paddle2onnx":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _first_rows(index: Array, rows: int) -> Array:
    """Return (B, 1) of a static graph: the first of the ``rows`` of each sample, in the dtype of ``index``.

    The batch size is a number on the host, as it is where a model expands its class token.
    """
    stop = paddle.shape(index)[0] * rows
    return paddle.arange(0, stop, rows, dtype=index.dtype).unsqueeze(1)


@paddle.jit.not_to_static
def _divided_pairs(x: Array, first_even: int, first_odd: int) -> tuple[Array, Array]:
    """Return every second token of ``x`` (B, N, D) from two neighbouring tokens, by dividing pairs."""
    start, width = builtins.min(first_even, first_odd), x.shape[2]
    pairs = (x.shape[1] - start) // 2
    two = paddle.reshape(x[:, start : start + 2 * pairs], [-1, pairs, 2, width])
    first, second = paddle.unbind(two, 2)
    if start + 2 * pairs < x.shape[1]:
        first = paddle.concat([first, x[:, start + 2 * pairs :]], axis=1)
    return (first, second) if first_even < first_odd else (second, first)


@paddle.jit.not_to_static
def _form_of_mean(plan: Any, x: Array, padded: bool) -> Any:
    """Return the function that computes weighted means of ``x``; None: that of ``core/mean.py``."""
    own_weights = plan.mean_weight is not None or plan.size_weight is not None
    if padded or own_weights or plan.keep_norm or not plan.num_merged:
        return None
    if not paddle.in_dynamic_mode() and exporting_onnx():
        return None
    if off_cpu(x):
        return by_groups
    return None if paddle.in_dynamic_mode() else by_slots


@paddle.jit.not_to_static
def _sum_in(x: Array, axis: int, dtype: Any) -> Array:
    if off_cpu(x):
        return paddle.sum(x, axis=axis, dtype=dtype)
    return sum(astype(x, dtype, copy=False), axis)


class PaddleBackend(Backend):
    """Paddle's own forms of most operations, and the namespace of this module.

    In a static graph the batch size is unknown, so it is not read there.
    """

    def scatter_add(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        """Add ``updates`` on flat rows, which is 5 to 10 times faster than put_along_axis."""
        rows, width = base.shape[1], base.shape[2]
        base, updates = paddle.reshape(base, [-1, width]), paddle.reshape(updates, [-1, width])
        added = _add_rows(base, self.flat_rows(index, rows), updates)
        return paddle.reshape(added, [-1, rows, width])

    def scatter_max(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        """Take the maximum, by an index of the full width: put_along_axis would write only column 0."""
        index = paddle.expand(paddle.unsqueeze(index, 2), [-1, -1, base.shape[2]])
        return paddle.put_along_axis(base, index, updates, 1, reduce="amax", broadcast=False)

    def accumulate(self, base: Array, rows: Array, updates: Array) -> Array:
        """Add ``updates``, in place if no gradients are needed: the copy takes longer than the sum."""
        if paddle.in_dynamic_mode() and base.stop_gradient and updates.stop_gradient:
            return paddle.index_add_(base, rows, 0, updates)
        return _add_rows(base, rows, updates)

    def accumulate_2d(self, base: Sizes, index: Index, updates: Sizes) -> Sizes:
        """Add ``updates`` on flat rows, because put_along_axis reads a value on the host."""
        slots = base.shape[1]
        flat = paddle.reshape(base, [-1])
        rows = self.flat_rows(index, slots)
        flat = self.accumulate(flat, rows, paddle.reshape(updates, [-1]))
        return paddle.reshape(flat, [-1, slots])

    def detach(self, x: Array) -> Array:
        """Return ``x`` without gradients; in a static graph as a copy.

        There ``x.detach()`` is another name of the same memory, which Paddle's in-place pass does not know:
        an operation on the result, such as scaling keys, would write into ``x``.
        """
        if paddle.in_dynamic_mode():
            return x.detach()
        if x.stop_gradient:
            return x
        copy = paddle.assign(x)
        copy.stop_gradient = True
        return copy

    def device(self, x: Array) -> Any:
        """Return the place of a tensor; a value of a static graph has none yet."""
        return x.place if paddle.in_dynamic_mode() else None

    def batch_index(self, index: Index) -> Array:
        """Return the sample numbers."""
        if not paddle.in_dynamic_mode():
            return _first_rows(index, 1)
        device = self.device(index)
        return arange(index.shape[0], dtype=index.dtype, device=device).unsqueeze(1)

    def batched_arange(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Return the range expanded to each sample: one operation, which is not cached."""
        if len(range(start, stop, step)) == 1 and not paddle.in_dynamic_mode():
            return paddle.full_like(index[:, :1], start)
        one = arange(start, stop, step, index.dtype, self.device(index))
        batch = index.shape[0] if paddle.in_dynamic_mode() else paddle.shape(index)[0]
        return paddle.expand(one, [batch, one.shape[0]])

    def take_range(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Compute the numbers, which is faster than looking them up."""
        return paddle.scale(index, step, start)

    def even_and_odd(
        self, x: TokenKeys, first_even: int, first_odd: int
    ) -> tuple[TokenKeys, TokenKeys]:
        """Take both; in a static graph by dividing pairs of tokens, which needs no indices."""
        if paddle.in_dynamic_mode():
            return self.every_second(x, first_even), self.every_second(x, first_odd)
        return _divided_pairs(x, first_even, first_odd)

    def sum_in(self, x: Array, axis: int, dtype: Any) -> Array:
        """Sum straight to ``dtype`` off the CPU, without a wider copy; a static graph keeps no gradients.

        Only keys are summed, so that their gradients end here, without the copy that :meth:`detach` needs.
        """
        found = _sum_in(x, axis, dtype)
        if not paddle.in_dynamic_mode():
            found.stop_gradient = True
        return found

    def flat_rows(self, index: Index, rows: int) -> Array:
        """Return the rows; for a single sample they are the index itself."""
        batch = index.shape[0]
        if not paddle.in_dynamic_mode():
            index = index + _first_rows(index, rows)
        elif batch > 1:
            first = arange(0, batch * rows, rows, index.dtype, self.device(index))
            index = index + first.unsqueeze(1)
        return paddle.reshape(index, [-1])

    def products(self, a: TokenKeys, b: TokenKeys) -> Array:
        # Not ``products(a, b)``: in a converted method, its own name is a local function.
        return paddle_products.products(a, b)

    def max_rows(self, x: Array) -> tuple[Array, Array | None]:
        """Return the maxima, taken at argmax: on a CPU this needs two thirds of the time of paddle.max."""
        where = paddle.argmax(x, axis=2, keepdim=True)
        found = paddle.take_along_axis(x, where, 2, broadcast=False)
        return paddle.squeeze(found, 2), paddle.squeeze(where, 2)

    def average_rows(
        self, plan: Any, x: Tokens, size: Sizes | None, padded: bool
    ) -> tuple[Tokens, Sizes] | None:
        """Compute it by groups off the CPU, and by slots in a static graph for a CPU."""
        form = _form_of_mean(plan, x, size is not None and padded)
        if form is None:
            return None
        if size is not None:
            size = size.astype(float32)
        return form(self, plan, x, size)  # type: ignore[no-any-return]

    def host_values(self, x: Any) -> Any:
        """Return the values, except in a graph; SOT would divide its graph where a value is read."""
        if not paddle.in_dynamic_mode() or psdb.in_sot():
            return None
        if not isinstance(x, paddle.Tensor):
            return Backend.host_values(self, x)
        if not x.place.is_cpu_place():
            return None
        return x.numpy()

    def fused(
        self,
        keys: Keys,
        x: Tokens,
        size: Sizes | None,
        source: Callable[[], Index] | None,
        r: int,
        protected: int,
    ) -> Fused | None:
        return match_and_merge(MEMORY, keys, x, size, source, r, protected)


BACKEND = PaddleBackend("paddle", sys.modules[__name__])
