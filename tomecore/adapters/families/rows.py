"""Attention of the first tokens alone, over the keys and values of all: one function for each anatomy.

For ``trim_last``, where nobody reads the other tokens behind the last block. The modules inside an
attention are called as they are wherever that is exact; one that projects to queries, keys and values at
once is taken apart where it is a plain linear layer, and called as a whole where it is not.
"""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array

__all__ = ["attended", "of_fused", "of_separate"]


def of_fused(host: Any, attn: Any, x: Array, rows: int) -> tuple[Array, Array, Array]:
    """Queries (B, rows, H, D), keys and values (B, N, H, D) of x (B, N, C), of one fused ``qkv``."""
    apart = host.queries_apart(attn.qkv)
    if apart is None:
        qkv = attn.qkv(x)
        third = qkv.shape[2] // 3
        q, kv = qkv[:, :rows, :third], qkv[:, :, third:]
    else:
        (q_weight, q_bias), (kv_weight, kv_bias) = apart
        q = host.linear(x[:, :rows], q_weight, q_bias)
        kv = host.linear(x, kv_weight, kv_bias)
    heads = attn.num_heads
    width = q.shape[2] // heads
    kv = kv.reshape([-1, x.shape[1], 2, heads, width])
    return q.reshape([-1, rows, heads, width]), kv[:, :, 0], kv[:, :, 1]


def of_separate(
    projections: tuple[Any, Any, Any], x: Array, rows: int, heads: int, width: int
) -> tuple[Array, Array, Array]:
    """The same of three projections, those of queries, keys and values."""
    query, key, value = projections
    tokens = x.shape[1]
    q = query(x[:, :rows]).reshape([-1, rows, heads, width])
    k = key(x).reshape([-1, tokens, heads, width])
    v = value(x).reshape([-1, tokens, heads, width])
    return q, k, v


def attended(
    host: Any,
    qkv: tuple[Array, Array, Array],
    bias: Array | None,
    *,
    dropout: float,
    scale: float,
) -> Array:
    """What comes before the projection: (B, rows, H * D)."""
    q, k, v = qkv
    y = host.attention(q, k, v, bias, dropout=dropout, scale=scale)
    return y.reshape([-1, y.shape[1], y.shape[2] * y.shape[3]])
