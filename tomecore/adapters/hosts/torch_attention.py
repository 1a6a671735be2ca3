"""Attention with a bias of keys in PyTorch, in the forms that are not the fused kernel with a mask.

A library's own attention is called as it is, so the form travels with the bias: a :class:`KeyBias` answers
the call of ``scaled_dot_product_attention`` that it is handed to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tomecore.backends import Array
from tomecore.backends.torch import tracing

__all__ = [
    "KeyBias",
    "KeyColumn",
    "attention_by_column",
    "attention_by_products",
    "by_products",
    "rides",
    "watched",
    "widened",
]

#: batch x heads x tokens^2 from which on the products are faster
_MANY_SCORES = 100_000
#: of a head, where only all of them together are known
_USUAL_WIDTH = 64

#: (q, k, v, bias (B, 1, 1, N), dropout, scale) -> what attention gives, or None: not here
Form = Callable[[Array, Array, Array, Array, float, float], Array | None]

#: what libraries do with a mask before they hand it on
_KEPT = (torch.Tensor.__getitem__, torch.Tensor.to)
#: what leaves it a mask, or makes it part of one
_RESHAPED = (
    *_KEPT,
    torch.Tensor.expand,
    torch.Tensor.view,
    torch.Tensor.reshape,
    torch.Tensor.unsqueeze,
    torch.Tensor.squeeze,
    torch.Tensor.contiguous,
    torch.Tensor.float,
    torch.Tensor.type_as,
    torch.Tensor.add,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.add,
)


def by_products(x: torch.Tensor) -> bool:
    """Whether attention with a bias is two products and a softmax here, instead of the fused kernel.

    The one place where that is chosen, by measurement (docs/design.md): in bfloat16 on a CPU they take 0.7 of
    its time, but for few scores. They would keep all scores for a backward pass, so not where there is one.
    """
    if x.dtype != torch.bfloat16 or not x.is_cpu or torch.is_grad_enabled() or tracing():
        return False
    return x.shape[0] * x.shape[1] ** 2 * x.shape[2] >= _MANY_SCORES * _USUAL_WIDTH


def rides() -> bool:
    """Whether a bias can bring its form along: Dynamo follows it, other tracers and fake tensors do not."""
    return torch.compiler.is_dynamo_compiling() or _get_current_dispatch_mode() is None


class KeyBias(torch.Tensor):
    """A bias of keys (B, 1, 1, N) that brings along how attention is computed with it: by products.

    A library hands it to ``scaled_dot_product_attention``, which asks it; nothing global is switched, so
    other threads and blocks without a bias keep the fused kernel.
    """

    @staticmethod
    def attend(*args: Any, **kwargs: Any) -> Array:
        return attention_by_products(*args, **kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What is computed with it is a plain tensor.
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:
                return cls.attend(*args, **(kwargs or {}))
            found = func(*args, **(kwargs or {}))
        return found.as_subclass(cls) if func in _KEPT else found


class KeyColumn(KeyBias):
    """The same, as a column of the keys."""

    @staticmethod
    def attend(*args: Any, **kwargs: Any) -> Array:
        return attention_by_column(*args, **kwargs)


class WatchedBias(torch.Tensor):
    """A bias that notes whether anything is computed with it, for an attention that may ignore it."""

    _tome_used: list[bool]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        watching = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, cls)]
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "__get__":  # of shape, dtype, device
            return found
        for bias in watching:
            if func in _RESHAPED and isinstance(found, torch.Tensor):
                found = found.as_subclass(cls)
                found._tome_used = bias._tome_used
            elif isinstance(found, torch.Tensor | tuple | list):  # and not a question, as dim() is
                bias._tome_used.append(True)
        return found


def watched(bias: Array) -> tuple[Array, Callable[[], bool]]:
    """``bias``, and a function that says whether anything was computed with it."""
    seen = bias.as_subclass(torch.Tensor).as_subclass(WatchedBias)
    seen._tome_used = []
    return seen, lambda: bool(seen._tome_used)


def attention_by_products(*args: Any, **kwargs: Any) -> Array:
    """``scaled_dot_product_attention``; by two products and a softmax for many scores in bfloat16."""
    return _attention(_products, *args, **kwargs)


def attention_by_column(*args: Any, **kwargs: Any) -> Array:
    """``scaled_dot_product_attention``; where its mask is a bias of keys, without one."""
    return _attention(_column, *args, **kwargs)


def _attention(
    form: Form,
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """By ``form`` where the mask is a bias of keys and the form serves the rest; else by the fused kernel."""
    found = None
    usual = query.ndim == 4 and query.shape[1] == key.shape[1] and not (is_causal or enable_gqa)
    if usual and attn_mask is not None and attn_mask.shape == (key.shape[0], 1, 1, key.shape[2]):
        width = query.shape[-1]
        found = form(
            query, key, value, attn_mask, dropout_p, width**-0.5 if scale is None else scale
        )
    if found is not None:
        return found
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _products(
    q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float
) -> Array | None:
    if q.shape != k.shape or q.dtype != torch.bfloat16 or bias.dtype != q.dtype or dropout:
        return None
    batch, heads, tokens, _ = q.shape
    if batch * heads * tokens**2 < _MANY_SCORES:
        return None
    rows = bias.expand(batch, heads, 1, tokens).reshape(-1, 1, tokens)
    q, k, v = (t.reshape(batch * heads, tokens, -1) for t in (q, k, v))
    scores = torch.baddbmm(rows, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, tokens, -1)


def _column(q: Array, k: Array, v: Array, bias: Array, dropout: float, scale: float) -> Array:
    """By the fused kernel without a mask: [q, 1 / scale] [k, bias]^T = q k^T + bias / scale.

    Flash kernels of GPUs take no mask. Queries and values are as wide as the keys, in multiples of eight, as
    these kernels want it.
    """
    width = v.shape[-1]
    q, k, v = (
        widened(q, q.new_full((), 1 / scale)),
        widened(k, bias.to(k.dtype).transpose(2, 3)),
        widened(v, v.new_zeros(())),
    )
    return F.scaled_dot_product_attention(q, k, v, None, dropout, scale=scale)[..., :width]


def widened(x: Array, column: Array) -> Array:
    """(B, H, N, d) -> (B, H, N, d + 8 at most): a column (B, 1, N, 1) and zeros up to a multiple of eight."""
    parts, spare = [x, column.expand(*x.shape[:-1], 1)], 7 - x.shape[-1] % 8
    if spare:
        parts.append(x.new_zeros(()).expand(*x.shape[:-1], spare))
    return torch.cat(parts, -1)
