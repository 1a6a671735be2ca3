"""The forms of attention with a bias in Paddle: what each of its kernels takes, on a CPU and on a GPU.

The functions stand at the top of a module and are looked up in ``FORMS``: static graphs convert their
source, and would leave a trace of every branch. What they need to branch for is not converted.

A kernel on a GPU reads a mask as (queries, keys), whatever its shape says: the flash kernel of Paddle 3.3
steps a mask (B, 1, 1, n) by n for each query, into the sizes of other images and then into foreign memory.
The memory-efficient kernel refuses such a mask, and Paddle chooses it only where n is a multiple of 8. So
off the CPU every mask has as many rows as there are queries, and as many samples as the batch.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from tomecore.backends import Array
from tomecore.backends.paddle import place_of

__all__ = [
    "FORMS",
    "form_of",
    "with_full_mask",
    "with_key_column",
    "with_mask",
    "with_padded_column",
    "with_products",
]

#: what the width of a mask and of a head is a multiple of, for the fused kernels of a GPU
_MULTIPLE = 8
#: the first CUDA cards with the flash kernel, which alone takes a mask of any width
_FLASH = (8, 0)


@paddle.jit.not_to_static
def form_of(q: Array, bias: Array | None, dropout: float) -> str:
    """The name in ``FORMS`` of the form in which (B, n, H, D) queries attend with this bias.

    The one place where that is chosen. On a CPU by measurement (docs/design.md): Paddle adds a bias of keys
    to all scores in up to eight tenths of the time of the attention without it. Off the CPU by what the
    kernels take; a static graph is traced for Paddle's current device, as Paddle's own choice of kernel is.
    """
    if bias is None:
        return "mask"
    place = place_of(q)
    of_keys = bias.shape[1] == 1 and bias.shape[2] == 1
    if place.is_cpu_place():
        return "key column" if of_keys and dropout == 0 and paddle.in_dynamic_mode() else "mask"
    if of_keys and place.is_gpu_place() and bias.shape[3] % _MULTIPLE and _needs_width(q.dtype):
        return "padded column"
    return "full mask"


def _needs_width(dtype: Any) -> bool:
    """Whether the fused kernel for this dtype, on this card, takes masks of some widths only."""
    if dtype == paddle.float32:
        return True
    if dtype not in (paddle.float16, paddle.bfloat16) or not paddle.device.cuda.device_count():
        return False
    return tuple(paddle.device.cuda.get_device_capability()) < _FLASH


def with_mask(
    q: Array, k: Array, v: Array, bias: Array | None, dropout: float, scale: float
) -> Array:
    """Paddle's attention with the bias as it is; right on a CPU, and anywhere without a bias."""
    usual = q.shape[-1] ** -0.5
    if scale != usual:  # folded into q: with scale= given, the flash kernel is not used
        q = q * (scale / usual)
    if bias is not None and bias.dtype != q.dtype:  # autocast: half q beside full activations
        bias = bias.astype(q.dtype)
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, training=True
    )


@paddle.jit.not_to_static
def with_full_mask(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array:
    """Paddle's attention with the bias spread over every query and sample, contiguous: (B, 1 or H, n, N)."""
    bias = bias.astype(q.dtype)
    if (
        bias.shape[0] != q.shape[0] and not paddle.in_dynamic_mode()
    ):  # a batch that is not known yet
        bias = bias + paddle.zeros_like(q[:, :1, :1, :1])
    bias = bias.expand([q.shape[0], bias.shape[1], q.shape[1], k.shape[1]])
    return with_mask(q, k, v, bias, dropout, scale)


def with_key_column(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array:
    """Attention of (B, n, H, D) with a bias of keys (B, 1, 1, N), in the products that are made anyway.

    [q, 1] [k, bias]^T = q k^T + bias. Nothing is dropped: ``dropout`` is 0.
    """
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q * scale, k, v))
    batch, heads, tokens, _ = k.shape
    column = bias.astype(q.dtype).transpose([0, 1, 3, 2]).expand([batch, heads, tokens, 1])
    q = paddle.concat([q, paddle.ones_like(q[:, :, :, :1])], axis=-1)
    scores = paddle.matmul(q, paddle.concat([k, column], axis=-1), transpose_y=True)
    return paddle.matmul(nn.functional.softmax(scores), v).transpose([0, 2, 1, 3])


@paddle.jit.not_to_static
def with_padded_column(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array:
    """The same column for the fused kernels of a GPU, which then get no mask at all.

    Heads become wider by 1 to 8, to a multiple of 8, and the kernel divides the scores by the root of that
    width, so they are multiplied by it beforehand. What q holds beside the column is a power of two, which
    no precision rounds.
    """
    width, heads = q.shape[3], q.shape[2]
    extra = _MULTIPLE - width % _MULTIPLE
    root = (width + extra) ** 0.5
    one = 2.0 ** (round(root).bit_length() - 1)
    column = bias.astype(q.dtype).transpose([0, 3, 1, 2]) * (root / one)
    column = column.expand([-1, -1, heads, -1])
    ones = paddle.full_like(q[:, :, :, :1], one)
    q = paddle.concat([q * (scale * root), ones, *_zeros(q, extra - 1)], axis=-1)
    k = paddle.concat([k, column, *_zeros(k, extra - 1)], axis=-1)
    v = paddle.concat([v, *_zeros(v, extra)], axis=-1)
    y = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, training=True)
    return y[:, :, :, :width]


def with_products(
    q: Array, k: Array, v: Array, bias: Array | None, dropout: Any, scale: float
) -> Array:
    """Attention by its definition, so that ``dropout``, a module, is called on the weights (B, H, n, N)."""
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q * scale, k, v))
    scores = paddle.matmul(q, k, transpose_y=True)
    if bias is not None:
        scores = scores + bias.astype(q.dtype)
    weights = dropout(nn.functional.softmax(scores))
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])


def _zeros(x: Array, width: int) -> list[Array]:
    """Columns of zeros beside ``x``; none if ``width`` is 0."""
    if not width:
        return []
    return [paddle.zeros_like(x[:, :, :, :1]).expand([-1, -1, -1, width])]


#: name -> the function that attends
FORMS = {
    "mask": with_mask,
    "key column": with_key_column,
    "full mask": with_full_mask,
    "padded column": with_padded_column,
}
