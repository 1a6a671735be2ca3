"""Compute attention with a key bias in PyTorch in other forms than the fused kernel with a mask.

A library's own attention is called unchanged, so the bias carries the form: a :class:`KeyBias` overrides
``scaled_dot_product_attention`` in the call that it is passed to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tomecore.backends import Array
from tomecore.backends.kernels.cuda.torch import bias_dtype
from tomecore.backends.torch import tracing

__all__ = [
    "KeyBias",
    "KeyColumn",
    "aligned_log",
    "append_column",
    "attention_by_column",
    "attention_by_products",
    "by_products",
    "mask_is_unsafe",
    "rides",
    "watch_bias",
]

#: from this many scores (batch x heads x tokens^2) on, the two products are faster
_MANY_SCORES = 100_000
_HALF = (torch.float16, torch.bfloat16)
#: major numbers of the architectures on which PyTorch prefers cuDNN's attention
_WITH_CUDNN = (9, 10)
#: assumed width of a head, if only the width of all heads together is known
_USUAL_WIDTH = 64

#: (q, k, v, bias (B, 1, 1, N), dropout, scale) -> the output of attention; None: not supported here
Form = Callable[[Array, Array, Array, Array, float, float], Array | None]

#: operations that libraries apply to a mask before they pass it on
_KEPT = (torch.Tensor.__getitem__, torch.Tensor.to)
#: operations whose result is still the mask, or contains it
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
    """Whether attention with a bias runs as two products and a softmax here, not in the fused kernel.

    The form is chosen only here, by measurement (docs/design.md): in bfloat16 on a CPU the products take 0.7
    of the kernel's time, except with few scores. They would keep all scores for a backward pass, so they are
    not used if gradients are enabled.
    """
    if x.dtype != torch.bfloat16 or not x.is_cpu or torch.is_grad_enabled() or tracing():
        return False
    return x.shape[0] * x.shape[1] ** 2 * x.shape[2] >= _MANY_SCORES * _USUAL_WIDTH


def rides() -> bool:
    """Whether a bias can carry its form: Dynamo supports it, other tracers and fake tensors do not."""
    return torch.compiler.is_dynamo_compiling() or _get_current_dispatch_mode() is None


def mask_is_unsafe(bias: torch.Tensor) -> bool:
    """Whether cuDNN may run attention with this bias (B, 1, 1, N), and its backward may return NaN.

    That happens if N % 128 is 64 (https://github.com/pytorch/pytorch/issues/196678). It does not depend on
    whether gradients are enabled, because a checkpoint must compute the same both times.
    """
    if bias.device.type != "cuda" or bias.dtype not in _HALF or bias.shape[3] % 128 != 64:
        return False
    return not torch.is_inference_mode_enabled() and _may_choose_cudnn(bias.device)


def _may_choose_cudnn(device: torch.device) -> bool:
    if not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    return torch.cuda.get_device_capability(device)[0] in _WITH_CUDNN


_may_choose_cudnn._dynamo_marked_constant = True  # type: ignore[attr-defined]


def aligned_log(sizes: Array, x: torch.Tensor) -> Array:
    """Return the log sizes (B, 1, 1, N) in the dtype of the queries of ``x``, in one launch.

    Rows start at multiples of eight numbers. The memory-efficient kernel would copy any other mask.
    """
    batch, tokens = sizes.shape
    rows = sizes.new_empty((batch, 1, 1, tokens + -tokens % 8), dtype=bias_dtype(x))
    return torch.log(sizes[:, None, None, :], out=rows[..., :tokens])


class KeyBias(torch.Tensor):
    """A key bias (B, 1, 1, N) with which ``scaled_dot_product_attention`` runs as two products.

    It overrides only the call that it is passed to. No global state changes, so other threads and blocks
    without a bias keep the fused kernel.
    """

    @staticmethod
    def attend(*args: Any, **kwargs: Any) -> Array:
        """Compute attention with this bias."""
        return attention_by_products(*args, **kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The result of any other operation is a plain tensor.
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.scaled_dot_product_attention:
                return cls.attend(*args, **(kwargs or {}))
            found = func(*args, **(kwargs or {}))
        return found.as_subclass(cls) if func in _KEPT else found


class KeyColumn(KeyBias):
    """A key bias that is computed as a column of the keys."""

    @staticmethod
    def attend(*args: Any, **kwargs: Any) -> Array:
        """Compute attention with this bias."""
        return attention_by_column(*args, **kwargs)


class WatchedBias(torch.Tensor):
    """A bias that records whether anything is computed with it, for an attention that may ignore it."""

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
            elif isinstance(found, torch.Tensor | tuple | list):  # not a query such as dim()
                bias._tome_used.append(True)
        return found


def watch_bias(bias: Array) -> tuple[Array, Callable[[], bool]]:
    """Return ``bias``, and a function that reports whether anything was computed with it."""
    seen = bias.as_subclass(torch.Tensor).as_subclass(WatchedBias)
    seen._tome_used = []
    return seen, lambda: bool(seen._tome_used)


def attention_by_products(*args: Any, **kwargs: Any) -> Array:
    """Compute ``scaled_dot_product_attention`` by two products and a softmax, if they are faster."""
    return _attention(_products, *args, **kwargs)


def attention_by_column(*args: Any, **kwargs: Any) -> Array:
    """Compute ``scaled_dot_product_attention`` without a mask, if the mask is a key bias."""
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
    """Compute attention by ``form`` if the mask is a key bias and the form supports the call.

    Otherwise use the fused kernel.
    """
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
    """Call the fused kernel without a mask: [q, 1 / scale] [k, bias]^T = q k^T + bias / scale.

    GPU flash kernels take no mask. They need queries, keys and values of the same width, a multiple of eight.
    """
    width = v.shape[-1]
    q, k, v = (
        append_column(q, q.new_full((), 1 / scale)),
        append_column(k, bias.to(k.dtype).transpose(2, 3)),
        append_column(v, v.new_zeros(())),
    )
    return F.scaled_dot_product_attention(q, k, v, None, dropout, scale=scale)[..., :width]


def append_column(x: Array, column: Array) -> Array:
    """Append to ``x`` (B, H, N, d) a column (B, 1, N, 1), and zeros up to a multiple of eight."""
    parts, spare = [x, column.expand(*x.shape[:-1], 1)], 7 - x.shape[-1] % 8
    if spare:
        parts.append(x.new_zeros(()).expand(*x.shape[:-1], spare))
    return torch.cat(parts, -1)
