"""The attention half of ``torch.nn.MultiheadAttention``, for the families that are built on it.

That module projects with bare weights and does not return its keys, so a merging block does not call it.
The half here projects once, attends by the framework's fused kernel and projects back with the same
weights; to rounding, the result is the module's. The module itself is bypassed (``Spec.bypasses``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Anatomy, Kwargs, Projected, Trim
from tomecore.adapters.families.attention import (
    Linear,
    attend_heads,
    project_rows,
    split_heads,
    trim_with,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["MULTIHEAD", "anatomy_of", "attention", "qkv", "trim_of", "why_not"]

MULTIHEAD = ("torch.nn.modules.activation.MultiheadAttention",)
#: children and parameters of a module that :func:`why_not` accepts
_PARTS = ("in_proj_weight", "in_proj_bias", "out_proj")


class Multihead(Protocol):
    """The parts of ``torch.nn.MultiheadAttention`` that the half uses."""

    num_heads: int
    head_dim: int
    dropout: float
    training: bool
    in_proj_weight: Array
    in_proj_bias: Array | None
    out_proj: Linear
    bias_k: Array | None
    bias_v: Array | None
    add_zero_attn: bool


def qkv(
    host: Host,
    module: Multihead,
    y: Tokens,
    block_kwargs: Kwargs | None = None,
    rows: int | None = None,
) -> Projected:
    """Return queries, keys, values and the scale of a ``MultiheadAttention``; see :class:`Anatomy`."""
    heads, width = module.num_heads, module.head_dim
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if rows is None:
        q, k, v = split_heads(host.linear(y, weight, bias), heads)
    else:
        third = heads * width
        q_bias, kv_bias = (None, None) if bias is None else (bias[:third], bias[third:])
        apart = (weight[:third], q_bias), (weight[third:], kv_bias)
        q, k, v = project_rows(host, y, apart, heads, rows)
    return q, k, v, width**-0.5


def attention(
    host: Host, module: Multihead, y: Tokens, bias: Bias | None, rows: int | None = None
) -> tuple[Tokens, Array]:
    """Return the output of ``module`` for the first ``rows`` tokens of y (B, N, C), and keys (B, N, H, D)."""
    q, k, v, scale = qkv(host, module, y, None, rows)
    dropout = module.dropout if module.training else 0.0
    out = attend_heads(host, (q, k, v), bias, dropout, scale)
    return host.linear(out, module.out_proj.weight, module.out_proj.bias), k


def why_not(module: Multihead) -> str | None:
    """Return why :func:`attention` would differ from ``module``, or None."""
    if module.in_proj_weight is None:
        return "its MultiheadAttention projects keys or values of another width (kdim, vdim)"
    if module.bias_k is not None or module.bias_v is not None:
        return "its MultiheadAttention adds a key and a value to every sequence (add_bias_kv)"
    if module.add_zero_attn:
        return "its MultiheadAttention adds a key of zeros to every sequence (add_zero_attn)"
    return None


def anatomy_of(attend: Callable[..., Any], path: str, norm: str) -> Anatomy:
    """Return the anatomy of blocks with a ``MultiheadAttention`` at ``path``; see :class:`Anatomy`."""
    return Anatomy(attend, path, norm, qkv, dict.fromkeys(MULTIHEAD, _PARTS))


def trim_of(anatomy: Anatomy, **known: Any) -> Trim:
    """Return the trimmed form of blocks with this anatomy; see :class:`Trim`."""
    keys = {f"{anatomy.attention}.in_proj_weight": 2 / 3}
    return trim_with(anatomy, keys=keys, refuse=why_not, **known)
