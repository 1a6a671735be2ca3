"""Attention with a bias in Paddle: by the kernel with a mask, or with the bias as a column of the keys.

The functions stand at the top of a module and are looked up in ``FORMS``: static graphs convert their source.
"""

from __future__ import annotations

import paddle
from paddle import nn

from tomecore.backends import Array

__all__ = ["FORMS", "by_column", "with_key_column", "with_mask"]


def by_column(q: Array, bias: Array | None, dropout: float) -> bool:
    """Whether the bias is a column of the keys here, and not an addition to the scores.

    The one place where that is chosen, by measurement (docs/design.md): Paddle on a CPU adds a bias of keys
    to all scores in up to eight tenths of the time of the attention without it.
    """
    here = bias is not None and dropout == 0 and paddle.in_dynamic_mode() and q.place.is_cpu_place()
    return bool(here and bias.shape[1] == 1 and bias.shape[2] == 1)  # type: ignore[union-attr]


def with_mask(
    q: Array, k: Array, v: Array, bias: Array | None, dropout: float, scale: float
) -> Array:
    usual = q.shape[-1] ** -0.5
    if scale != usual:  # folded into q: with scale= given, the flash kernel is not used
        q = q * (scale / usual)
    if bias is not None and bias.dtype != q.dtype:  # autocast: half q beside full activations
        bias = bias.astype(q.dtype)
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, dropout_p=dropout, training=True
    )


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


#: whether the bias is a column of the keys -> the function that attends
FORMS = {False: with_mask, True: with_key_column}
