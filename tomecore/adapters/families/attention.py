"""Attention by the kind of its projections, for all tokens or for the queries of the first tokens only.

A ``qkv`` function is the anatomy of one kind of attention: ``(host, attn, y, block_kwargs, rows) -> (q, k, v,
scale)``. The attention halves of families, the last block of ``trim_last`` and the attention of the
class token (``Spec.anatomy``) all use it. Modules inside an attention are called as modules if
that is exact. A module that projects to queries, keys and values at once is split only if it is a plain
linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tomecore.adapters.engine.host import Host, Projection
from tomecore.adapters.engine.spec import Anatomy, Kwargs, Projected, Trim
from tomecore.backends import Array, Tokens

__all__ = [
    "FusedAttention",
    "Layer",
    "Linear",
    "ProjectedAttention",
    "add_biases",
    "attend_heads",
    "fused_qkv",
    "project_rows",
    "separate_qkv",
    "split_heads",
    "trim_with",
]

#: a module that is called with one array
Layer = Callable[[Array], Array]


class Linear(Protocol):
    """A linear layer whose weights a half uses without calling it."""

    weight: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        """Apply the layer."""


class FusedAttention(Protocol):
    """An attention with one projection to queries, keys and values."""

    num_heads: int
    scale: float
    qkv: Layer


class ProjectedAttention(Protocol):
    """An attention with three projections; ``head_dim`` is the width of a head."""

    head_dim: int
    training: bool
    q_proj: Layer
    k_proj: Layer
    v_proj: Layer


def fused_qkv(
    host: Host,
    attn: FusedAttention,
    y: Tokens,
    block_kwargs: Kwargs | None = None,
    rows: int | None = None,
) -> Projected:
    """Return q, k, v and scale of an attention with ``num_heads``, ``scale`` and one projection ``qkv``."""
    apart = None if rows is None else host.split_query_projection(attn.qkv)
    if apart is None:
        q, k, v = split_heads(attn.qkv(y), attn.num_heads)
        return (q if rows is None else q[:, :rows]), k, v, attn.scale
    q, k, v = project_rows(host, y, apart, attn.num_heads, rows)
    return q, k, v, attn.scale


def split_heads(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """Return queries, keys and values, (B, N, H, D) each, from their projection (B, N, 3 * H * D)."""
    qkv = qkv.reshape([-1, qkv.shape[1], 3, heads, qkv.shape[2] // (3 * heads)])
    q, k, v = qkv.unbind(2)
    return q, k, v


def project_rows(
    host: Host, y: Tokens, apart: tuple[Projection, Projection], heads: int, rows: int | None
) -> tuple[Array, Array, Array]:
    """Return queries of the first ``rows`` tokens, keys and values of all; ``apart`` is the projection."""
    (q_weight, q_bias), (kv_weight, kv_bias) = apart
    q = host.linear(y[:, :rows], q_weight, q_bias)
    width = q.shape[2] // heads
    kv = host.linear(y, kv_weight, kv_bias).reshape([-1, y.shape[1], 2, heads, width])
    return q.reshape([-1, rows, heads, width]), *kv.unbind(2)


def separate_qkv(
    projections: tuple[Layer, Layer, Layer], y: Tokens, width: int, rows: int | None = None
) -> tuple[Array, Array, Array]:
    """Return queries (B, rows, H, D), keys and values (B, N, H, D) by one projection each; D is ``width``."""
    query, key, value = projections
    q = query(y if rows is None else y[:, :rows])
    k, v = key(y), value(y)
    heads = k.shape[2] // width
    return (
        q.reshape([-1, q.shape[1], heads, width]),
        k.reshape([-1, k.shape[1], heads, width]),
        v.reshape([-1, v.shape[1], heads, width]),
    )


def attend_heads(
    host: Host,
    qkv: tuple[Array, Array, Array],
    bias: Array | None,
    dropout: float,
    scale: float,
) -> Array:
    """Return the attention without output projection, (B, rows, H * D), by the framework's fused kernel."""
    q, k, v = qkv
    y = host.attention(q, k, v, bias, dropout=dropout, scale=scale)
    return y.reshape([-1, y.shape[1], y.shape[2] * y.shape[3]])


def add_biases(positions: Array | None, sizes: Array | None) -> Array | None:
    """Return the sum of two biases of the attention scores; either may be None."""
    if positions is None or sizes is None:
        return sizes if positions is None else positions
    return positions + sizes


def trim_with(anatomy: Anatomy, **known: Any) -> Trim:
    """Return the trimmed form of blocks whose ``attend`` accepts ``rows``; see :class:`Trim`."""
    path, classes = anatomy.attention, anatomy.classes
    return Trim(of=anatomy.of, attend=anatomy.of, attention=path, classes=classes, **known)
