"""Compare keys by their cosine, and build the plan that merges nothing; shared by the algorithms."""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array, Backend
from tomecore.core.plan import MergePlan, compute_dtype

__all__ = ["asarray_like", "best_partner", "identity_plan", "token_numbers", "unit_keys"]

#: lower bound of the norm that keys are divided by: the squares of shorter keys underflow float32
_SMALLEST = 1e-18


def best_partner(backend: Backend, keys: Array, source: Array, target: Array) -> Array:
    """Return (B, s) int: the position in ``target`` of the token most similar to each source."""
    xp, units = backend.xp, unit_keys(backend, keys)
    a, b = xp.take(units, source, axis=1), xp.take(units, target, axis=1)
    return xp.argmax(backend.products(a, b), axis=2)


def unit_keys(backend: Backend, keys: Array) -> Array:
    """Scale the keys to norm 1, so that their products are cosines; keys of norm 0 stay 0."""
    xp = backend.xp
    keys = backend.detach(keys)
    keys = xp.astype(keys, compute_dtype(xp, keys.dtype), copy=False)
    return keys / xp.clip(backend.norm(keys), min=_SMALLEST)


def identity_plan(backend: Backend, keys: Array, tokens: int) -> MergePlan:
    xp = backend.xp
    numbers = token_numbers(backend, keys, 0, tokens)
    kept = xp.astype(xp.zeros_like(backend.detach(keys)[:, :1, 0]), numbers.dtype) + numbers
    return MergePlan(kept, kept[:, :0], kept[:, :0], backend=backend)


def token_numbers(backend: Backend, like: Array, start: int, stop: int, step: int = 1) -> Array:
    """Return (n,) token numbers on the device of ``like``, in its dtype if that is an integer.

    Otherwise in the library's default integer: int64, but int32 in JAX unless 64 bits are enabled.
    """
    xp = backend.xp
    dtype = like.dtype if xp.isdtype(like.dtype, "integral") else None
    return xp.arange(start, max(start, stop), step, dtype=dtype, device=backend.device(like))


def asarray_like(backend: Backend, like: Array, numbers: Any) -> Array:
    return backend.xp.asarray(numbers, device=backend.device(like))
