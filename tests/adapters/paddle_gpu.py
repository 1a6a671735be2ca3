"""A GPU for Paddle's attention on a CPU: its own selector with a GPU's answers, and its kernels' rules.

Paddle's ``scaled_dot_product_attention`` runs as installed and chooses a kernel. The kernels are emulated:
they check what the CUDA sources check, read a mask from its memory as they do, and compute in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import paddle
from paddle.incubate.nn import memory_efficient_attention as efficient
from paddle.nn.attention import sdpa as enabled
from paddle.nn.functional import sdpa

__all__ = ["CARDS", "InvalidArgument", "gpu"]

#: compute capabilities: V100, A100, H100
CARDS = [(7, 0), (8, 0), (9, 0)]

#: queries that a block of the flash kernel computes
_TILE = 128


class InvalidArgument(Exception):
    """The error of ``PADDLE_ENFORCE`` and ``ASSERT_CHECK``."""


def enforce(holds: bool, what: str) -> None:
    if not holds:
        raise InvalidArgument(what)


def attended(q: Any, k: Any, v: Any, bias: Any, scale: float, dropout: float) -> Any:
    """softmax(q k^T * scale + bias) v in float32, with a bias (B, H, n, N) in NumPy."""
    enforce(dropout == 0, "this emulation drops nothing")
    dtype = q.dtype
    q, k, v = (t.astype("float32").numpy().transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * np.float32(scale)
    if bias is not None:
        scores = scores + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return paddle.to_tensor(out.transpose(0, 2, 1, 3)).astype(dtype)


def in_memory(mask: Any) -> np.ndarray:
    """Return the elements of a mask in the order in which a kernel reads them, followed by NaN."""
    enforce(mask.is_contiguous(), "a kernel gets contiguous memory")
    found = mask.astype("float32").numpy().ravel()
    return np.concatenate([found, np.full(1 << 22, np.nan, dtype="float32")])


def flash(q: Any, k: Any, v: Any, seed: Any, mask: Any, dropout: float, *rest: Any) -> Any:
    """PaddlePaddle/flash-attention, ``capi/flash_attn.cu`` and ``src/flash_fwd_kernel.h``."""
    (batch, rows, heads, width), tokens = q.shape, k.shape[1]
    enforce(width % 8 == 0 and width <= 256, "head_size % 8 == 0 and head_size <= 256")
    enforce(q.dtype in (paddle.float16, paddle.bfloat16), "half precision")
    bias = None
    if mask is not None:
        shape = mask.shape
        enforce(mask.dtype == q.dtype, "attn_mask is expected to have the same data type with q")
        enforce(len(shape) == 4, "the number of dimensions of attn_mask is expected to be 4")
        enforce(shape[0] == batch, "mask_dims[0] == batch_size")
        enforce(shape[1] in (1, heads), "mask_dims[1] == 1 || mask_dims[1] == num_heads")
        enforce(shape[2] in (1, rows), "mask_dims[2] == 1 || mask_dims[2] == seqlen_q")
        enforce(shape[3] == tokens, "mask_dims[3] == seqlen_k")
        sample, head, row, column = np.ogrid[:batch, :heads, :rows, :tokens]
        tile = row // _TILE * _TILE
        first = (sample * shape[1] + head % shape[1]) * shape[2] + tile % shape[2]
        bias = in_memory(mask)[(first + row - tile) * tokens + column]
    return attended(q, k, v, bias, width**-0.5, dropout), None, None, None


def memory_efficient(
    q: Any, k: Any, v: Any, attn_bias: Any, p: float, scale: Any, training: bool
) -> Any:
    """``phi/kernels/fusion/cutlass/memory_efficient_attention_utils.h``."""
    (batch, rows, heads, width), tokens = q.shape, k.shape[1]
    bias = None
    if attn_bias is not None:
        shape = attn_bias.shape
        enforce(attn_bias.dtype == q.dtype, "the bias has the dtype of q")
        enforce(len(shape) in (2, 4), "the rank of attn_bias should be 2 or 4")
        enforce(shape[-1] == tokens, "the last dim should be the sequence length of key")
        enforce(shape[-2] == rows, "the 2nd last dim should be the sequence length of query")
        enforce(tokens % 8 == 0, "rows of the bias begin at aligned addresses")
        whole = len(shape) == 4 and shape[0] == batch and shape[1] == heads
        enforce(whole or len(shape) == 2 or shape[:2] == [1, 1], "1, or batch size and num_heads")
        steps = (heads * rows * tokens, rows * tokens) if whole else (0, 0)
        sample, head, row, column = np.ogrid[:batch, :heads, :rows, :tokens]
        at = sample * steps[0] + head * steps[1] + row * tokens + column
        bias = in_memory(attn_bias)[at]
    return attended(q, k, v, bias, width**-0.5 if scale is None else scale, p)


def by_math(
    q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: Any, softmax: Any, training: Any,
    scale: Any,
) -> Any:  # fmt: skip
    """Broadcasts as arrays do."""
    bias = None if mask is None else mask.astype("float32").numpy()
    return attended(q, k, v, bias, q.shape[3] ** -0.5 if scale is None else scale, dropout), None


def forget() -> None:
    """Paddle stores what it learned about the device."""
    for function in vars(sdpa).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    sdpa._config.clear()


def always(answer: Any) -> Any:
    """A function with this answer, which static graphs call and do not convert."""
    return paddle.jit.not_to_static(lambda *_, **named: answer)


@contextmanager
def gpu(card: tuple[int, int]) -> Iterator[list[str]]:
    """All places say that they are a GPU of this capability; the kernels chosen are noted, in order."""
    chosen: list[str] = []
    select = sdpa.select_sdp_for_sdpa

    def noted(params: Any) -> str:
        chosen.append(select(params))
        return chosen[-1]

    patches: list[Any] = [
        mock.patch.object(paddle, "is_compiled_with_cuda", always(True)),
        mock.patch.object(paddle, "is_compiled_with_custom_device", always(False)),
        mock.patch.object(paddle.cuda, "is_available", always(True)),
        mock.patch.object(paddle.device, "get_all_device_type", always(["gpu"])),
        mock.patch.object(paddle.device, "is_bf16_supported", always(True)),
        mock.patch.object(paddle.device.cuda, "device_count", always(1)),
        mock.patch.object(paddle.device.cuda, "get_device_capability", always(card)),
        mock.patch.dict(enabled._backend_enabled, dict.fromkeys(enabled._backend_enabled, True)),
        mock.patch.object(sdpa, "select_sdp_for_sdpa", noted),
        mock.patch.object(sdpa, "_C_ops", SimpleNamespace(flash_attn=flash)),
        mock.patch.object(sdpa, "_math_attention", by_math),
        mock.patch.object(efficient, "memory_efficient_attention", memory_efficient),
    ]
    for place in {type(paddle.zeros([1]).place), type(paddle.CPUPlace())}:
        for name, answer in (("is_cpu_place", False), ("is_gpu_place", True), ("gpu_device_id", 0)):
            patches.append(mock.patch.object(place, name, always(answer), create=True))
    forget()
    for patch in patches:
        patch.start()
    try:
        yield chosen
    finally:
        for patch in reversed(patches):
            patch.stop()
        forget()
