"""Products of PyTorch in the precision of their dtype, whatever autocast and other settings allow."""

from __future__ import annotations

import os
from typing import Any

import torch

from tomecore.backends import Array
from tomecore.backends.partial_products import factors

__all__ = ["matmul", "may_reduce", "products", "sums"]

#: PyTorch 2.9 has a precision for each library; earlier versions have one for all.
_BY_LIBRARY = hasattr(torch.backends.cuda.matmul, "fp32_precision")
#: environment variables of the libraries below PyTorch, which PyTorch ignores
_TF32 = os.environ.get("NVIDIA_TF32_OVERRIDE")
_ONEDNN = os.environ.get(
    "ONEDNN_DEFAULT_FPMATH_MODE", os.environ.get("DNNL_DEFAULT_FPMATH_MODE", "STRICT")
)

_TOP_BITS = -(2**16)  # sign, exponent and the upper 7 bits of the fraction of a float32


def may_reduce(kind: str) -> bool:
    """Whether products of float32 may use a lower precision on devices of this kind.

    ``torch.set_float32_matmul_precision("high")`` and ``torch.backends.cuda.matmul.allow_tf32`` allow
    TF32, which keeps 11 of the 24 bits of each number; "medium" allows bfloat16 on some CPUs, which keeps 8.
    """
    if kind == "cuda" and _TF32 in ("0", "1"):
        return _TF32 == "1"
    if kind == "cpu" and _ONEDNN.upper() != "STRICT":
        return True
    if _BY_LIBRARY:
        library = torch.backends.cuda if kind == "cuda" else torch.backends.mkldnn
        return library.matmul.fp32_precision in ("tf32", "bf16")
    return torch.get_float32_matmul_precision() != "highest"


# The effect of ``torch.compiler.assume_constant_result``, which would import all of Dynamo. A graph is
# compiled again when the setting changes.
may_reduce._dynamo_marked_constant = True  # type: ignore[attr-defined]


def products(a: Array, b: Array) -> Array:
    """Return products of pairs, (B, s, D) and (B, t, D) -> (B, s, t), in float32 if that is their dtype.

    It changes no setting, because other threads would see that, and a compiled graph would not.
    """
    if (
        a.dtype == torch.float32
        and may_reduce(a.device.type)
        and not torch.onnx.is_in_onnx_export()
    ):
        return _by_float64(a, b) if a.device.type == "cpu" else _by_parts(a, b)
    return matmul(a, b.transpose(1, 2))


def sums(a: Array, b: Array) -> Array:
    """Return the products of matrices (B, s, t) and (B, t, C) as :func:`products` does, with gradients.

    Gradients have the precision of the dtype too, even if they are computed within autocast.
    """
    kind = b.device.type
    if b.requires_grad and _knows_autocast(kind) and torch.is_autocast_enabled(kind):
        found: Array = _Sums.apply(a, b)
        return found
    return _sums(a, b)


class _Sums(torch.autograd.Function):
    """:func:`_sums`, with its own gradient, because autocast would round that of ``bmm``."""

    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        ctx.save_for_backward(a, b)
        return _sums(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array | None, Array]:
        a, b = ctx.saved_tensors
        to_a = sums(gradient, b.transpose(1, 2)) if ctx.needs_input_grad[0] else None
        return to_a, sums(a.transpose(1, 2), gradient)


def _sums(a: Array, b: Array) -> Array:
    if a.dtype == torch.float32 and may_reduce(a.device.type):
        return matmul(a.double(), b.double()).float()
    return matmul(a, b)


def _by_float64(a: Array, b: Array) -> Array:
    """Return products computed in float64; used on a CPU, where they take twice as long as in float32."""
    return matmul(a.double(), b.double().transpose(1, 2)).float()


def _by_parts(a: Array, b: Array) -> Array:
    """Multiply parts of 8 bits in one product; see ``partial_products.py``."""
    parts_of_a, parts_of_b = factors(_parts(a), _parts(b))
    return matmul(torch.cat(parts_of_a, 2), torch.cat(parts_of_b, 2).transpose(1, 2))


def _parts(x: Array) -> tuple[Array, Array, Array]:
    """Split ``x`` into three parts by masking bits, because a compiler may remove casts that cancel."""
    first = _cut(x)
    rest = x - first
    second = _cut(rest)
    return first, second, rest - second


def _cut(x: Array) -> Array:
    return (x.view(torch.int32) & _TOP_BITS).view(torch.float32)


def matmul(a: Array, b: Array, /) -> Array:
    """Multiply in the dtype of the arguments, under autocast too.

    Batches of matrices are multiplied by ``bmm``, which has less overhead than ``matmul``.
    """
    product = torch.bmm if a.ndim == 3 == b.ndim else torch.matmul
    kind = a.device.type
    if _knows_autocast(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return product(a, b)
    return product(a, b)


def _knows_autocast(kind: str) -> bool:
    """Whether autocast supports this kind of device; it does not support "meta" and some others."""
    if torch.compiler.is_dynamo_compiling():  # Dynamo of torch 2.8 cannot trace the call below
        return kind != "meta"
    return torch.amp.is_autocast_available(kind)
