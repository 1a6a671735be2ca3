"""The attention half of ``torch.nn.MultiheadAttention``, for the families that are built on it.

That module projects with bare weights and hands out no keys, so a merging block does not call it: the
half here projects once, attends on the framework's fused kernel and projects back with the same
weights, to rounding what the module computes. The module itself is bypassed (``Spec.bypasses``).
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.spec import Trim
from tomecore.adapters.families.rows import attended
from tomecore.backends import Array

__all__ = ["MULTIHEAD", "attention", "attention_of_rows", "trim_of", "why_not"]

MULTIHEAD = ("torch.nn.modules.activation.MultiheadAttention",)
#: children and parameters of a module for which :func:`why_not` has no reason
_PARTS = ("in_proj_weight", "in_proj_bias", "out_proj")


def attention_of_rows(host: Any, module: Any, x: Array, bias: Array | None, rows: int) -> Array:
    """What ``module`` makes of the first ``rows`` tokens of ``x``: (B, rows, C)."""
    tokens, heads, width = x.shape[1], module.num_heads, module.head_dim
    weight, given = module.in_proj_weight, module.in_proj_bias
    third = heads * width
    q_bias, kv_bias = (None, None) if given is None else (given[:third], given[third:])
    q = host.linear(x[:, :rows], weight[:third], q_bias).reshape([-1, rows, heads, width])
    kv = host.linear(x, weight[third:], kv_bias).reshape([-1, tokens, 2, heads, width])
    dropout = module.dropout if module.training else 0.0
    qkv = q, kv[:, :, 0], kv[:, :, 1]
    y = attended(host, qkv, bias, dropout=dropout, scale=width**-0.5)
    out: Array = host.linear(y, module.out_proj.weight, module.out_proj.bias)
    return out


def attention(host: Any, module: Any, x: Array, bias: Array | None) -> tuple[Array, Array]:
    """What ``module`` makes of ``x`` (B, N, C) attending to itself, and the keys (B, N, H, D)."""
    tokens, heads, width = x.shape[1], module.num_heads, module.head_dim
    qkv = host.linear(x, module.in_proj_weight, module.in_proj_bias)
    qkv = qkv.reshape([-1, tokens, 3, heads, width])
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    dropout = module.dropout if module.training else 0.0
    y = host.attention(q, k, v, bias, dropout=dropout, scale=width**-0.5)
    y = y.reshape([-1, tokens, heads * width])
    return host.linear(y, module.out_proj.weight, module.out_proj.bias), k


def why_not(module: Any) -> str | None:
    """Why :func:`attention` would not be what ``module`` computes, or None."""
    if module.in_proj_weight is None:
        return "its MultiheadAttention projects keys or values of another width (kdim, vdim)"
    if module.bias_k is not None or module.bias_v is not None:
        return "its MultiheadAttention adds a key and a value to every sequence (add_bias_kv)"
    if module.add_zero_attn:
        return "its MultiheadAttention adds a key of zeros to every sequence (add_zero_attn)"
    return None


def trim_of(path: str, **known: Any) -> Trim:
    """The trimmed form of blocks whose attention is such a module, at ``path``; see :class:`Trim`."""
    return Trim(
        attention=path,
        classes=dict.fromkeys(MULTIHEAD, _PARTS),
        keys={f"{path}.in_proj_weight": 2 / 3},
        refuse=why_not,
        **known,
    )
