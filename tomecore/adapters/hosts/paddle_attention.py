"""Compute attention with a bias in Paddle, in the forms that its kernels support on a CPU and on a GPU.

The forms are module-level functions and are looked up in ``FORMS``: static graphs convert their source, and
would trace every side of a branch. Functions that need to branch are excluded from the conversion.

GPU kernels read a mask as (queries, keys), regardless of its shape: the flash kernel of Paddle 3.3 advances
a mask (B, 1, 1, n) by n for each query, so it reads the sizes of other images, and then memory outside the
array. The memory-efficient kernel rejects such a mask, and Paddle chooses it only if n is a multiple of 8. So
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

#: the fused GPU kernels need a mask width and a head width that are multiples of this
_MULTIPLE = 8
#: the lowest compute capability with the flash kernel; only that kernel takes a mask of any width
_FLASH = (8, 0)


@paddle.jit.not_to_static
def form_of(q: Array, bias: Array | None, dropout: float) -> str:
    """Choose the form of attention for (B, n, H, D) queries with this bias; returns its name in ``FORMS``.

    The form is chosen only here. On a CPU the choice rests on measurements (docs/design.md): adding a key
    bias to all scores takes Paddle up to 0.8 of the time of the attention without it. Off the CPU it depends
    on what the kernels support; a static graph is traced for Paddle's current device, from which Paddle also
    chooses its kernel.
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
    """Whether the fused kernel for this dtype on this GPU restricts the width of a mask."""
    if dtype == paddle.float32:
        return True
    if dtype not in (paddle.float16, paddle.bfloat16) or not paddle.device.cuda.device_count():
        return False
    return tuple(paddle.device.cuda.get_device_capability()) < _FLASH


def with_mask(
    q: Array, k: Array, v: Array, bias: Array | None, dropout: float, scale: float
) -> Array:
    """Call Paddle's attention with the bias unchanged; correct on a CPU, and everywhere without a bias."""
    usual = q.shape[-1] ** -0.5
    if scale != usual:  # folded into q: Paddle does not use the flash kernel if scale= is given
        q = q * (scale / usual)
    if (
        bias is not None and bias.dtype != q.dtype
    ):  # autocast: q is half, the activations are float32
        bias = bias.astype(q.dtype)
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, training=True
    )


@paddle.jit.not_to_static
def with_full_mask(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array:
    """Call Paddle's attention with the bias expanded to every query and sample: (B, 1 or H, n, N)."""
    bias = bias.astype(q.dtype)
    if bias.shape[0] != q.shape[0] and not paddle.in_dynamic_mode():  # the batch size is unknown
        bias = bias + paddle.zeros_like(q[:, :1, :1, :1])
    bias = bias.expand([q.shape[0], bias.shape[1], q.shape[1], k.shape[1]])
    return with_mask(q, k, v, bias, dropout, scale)


def with_key_column(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array:
    """Compute attention of (B, n, H, D) with the key bias (B, 1, 1, N) as an extra column of the keys.

    The product of queries and keys then adds it: [q, 1] [k, bias]^T = q k^T + bias. ``dropout`` must be 0.
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
    """Compute attention with the key column for the fused GPU kernels, which then need no mask.

    Heads become wider by 1 to 8, to a multiple of 8. The kernel divides the scores by the square root of that
    width, so q is multiplied by it in advance. In the extra column q holds a power of two, which is exact in
    every dtype.
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
    """Compute attention by its definition, and apply the module ``dropout`` to the weights (B, H, n, N)."""
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q * scale, k, v))
    scores = paddle.matmul(q, k, transpose_y=True)
    if bias is not None:
        scores = scores + bias.astype(q.dtype)
    weights = dropout(nn.functional.softmax(scores))
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])


def _zeros(x: Array, width: int) -> list[Array]:
    """Return ``width`` columns of zeros to append to ``x``, as a list; an empty list if ``width`` is 0."""
    if not width:
        return []
    return [paddle.zeros_like(x[:, :, :, :1]).expand([-1, -1, -1, width])]


#: name -> the function that computes attention in this form
FORMS = {
    "mask": with_mask,
    "key column": with_key_column,
    "full mask": with_full_mask,
    "padded column": with_padded_column,
}
