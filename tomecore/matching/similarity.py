"""Compare keys by their cosine, and build the plan that merges nothing; shared by the algorithms."""

from __future__ import annotations

from math import inf

import numpy as np

from tomecore.backends import Array, Backend, Index, Mask, TokenKeys
from tomecore.core.plan import MergePlan, compute_dtype

__all__ = [
    "asarray_like",
    "best_in_chunks",
    "best_partner",
    "identity_plan",
    "token_numbers",
    "unit_keys",
    "without_infinite_padding",
]

#: keys are divided by their norm, but at least by this: the squares of shorter keys underflow float32
_SMALLEST = 1e-18
#: how many numbers a chunk holds for each sample: similarities, and scaled keys of its sources
_CHUNK = 2**24


def best_partner(backend: Backend, keys: TokenKeys, source: Array, target: Array) -> Index:
    """Return (B, s) int: the position in ``target`` of the token most similar to each source."""
    xp, units = backend.xp, unit_keys(backend, keys)
    a, b = xp.take(units, source, axis=1), xp.take(units, target, axis=1)
    return xp.argmax(backend.products(a, b), axis=2)


def best_in_chunks(
    backend: Backend,
    keys: TokenKeys,
    sources: Array,
    destinations: Array,
    chunk: int | None,
    scores: bool,
) -> tuple[Array | None, Array]:
    """Return the highest similarity of each source, and the position in ``destinations`` that has it.

    Both are (B, S), for ``sources`` (B, S) and ``destinations`` (B, T); the similarities are None unless
    ``scores``. No array holds more than ``chunk`` x T similarities of a sample. Keys are scaled to norm 1
    when they are needed: those of the sources ``chunk`` at a time.
    """
    xp, tokens, width = backend.xp, keys.shape[1], keys.shape[2]
    count, targets = sources.shape[1], destinations.shape[1]
    step = max(1, _CHUNK // (targets + width)) if chunk is None else chunk
    # Reshaped once for all chunks, because this copies keys whose rows are not contiguous.
    rows = xp.reshape(backend.detach(keys), (-1, width))
    units = _units_of(backend, rows, destinations, tokens)
    best, where = _best_of(backend, rows, sources[:, : min(step, count)], units, tokens, scores)
    # One array grows: small arrays between large ones that are freed would keep that memory in use.
    for start in range(step, count, step):
        part = sources[:, start : min(start + step, count)]
        more, there = _best_of(backend, rows, part, units, tokens, scores)
        best = xp.concat([best, more], axis=1) if scores else None
        where = xp.concat([where, there], axis=1)
    return best, where


def _best_of(
    backend: Backend, rows: Array, sources: Array, units: Array, tokens: int, scores: bool
) -> tuple[Array | None, Array]:
    """Compute :func:`best_in_chunks` for one chunk; its similarities are freed with this call."""
    cosine = backend.products(_units_of(backend, rows, sources, tokens), units)
    if not scores:
        return None, backend.xp.argmax(cosine, axis=2)
    best, where = backend.max_rows(cosine)
    return best, backend.xp.argmax(cosine, axis=2) if where is None else where


def _units_of(backend: Backend, rows: Array, index: Array, tokens: int) -> Array:
    """Return the keys at ``index`` (B, n), scaled to norm 1: (B, n, D), from ``rows`` (B * tokens, D)."""
    taken = backend.xp.take(rows, backend.flat_rows(index, tokens), axis=0)
    return unit_keys(backend, backend.xp.reshape(taken, (-1, index.shape[1], rows.shape[1])))


def unit_keys(backend: Backend, keys: TokenKeys) -> TokenKeys:
    """Scale the keys to norm 1, so that their products are cosines; keys of norm 0 stay 0."""
    xp = backend.xp
    keys = backend.detach(keys)
    keys = xp.astype(keys, compute_dtype(xp, keys.dtype), copy=False)
    return keys / xp.clip(backend.norm(keys), min=_SMALLEST)


def without_infinite_padding(backend: Backend, keys: TokenKeys, valid: Mask | None) -> TokenKeys:
    """Replace keys of padding that are infinite or NaN by 0: such a key would be the nearest to all others.

    Args:
        backend: of the keys.
        keys: (B, N, D).
        valid: (B, N) bool, False for padding; None: no padding.
    """
    if valid is None:
        return keys
    keys = backend.detach(keys)
    finite = (keys > -inf) & (keys < inf)
    return backend.xp.where(valid[:, :, None] | finite, keys, backend.xp.zeros_like(keys))


def identity_plan(backend: Backend, keys: TokenKeys, tokens: int) -> MergePlan:
    """Return the plan of ``tokens`` tokens that merges nothing."""
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


def asarray_like(backend: Backend, like: Array, numbers: np.ndarray) -> Array:
    """Return ``numbers``, a NumPy array, as an array on the device of ``like``."""
    return backend.xp.asarray(numbers, device=backend.device(like))
