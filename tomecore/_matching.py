"""Keys in, :class:`MergePlan` out: one function per algorithm.

To add one: take keys (B, N, D), return a plan, gather with index arrays (a strided slice is a slow
copy on Paddle and a recompilation on torch), use stable sorts, and never read the batch size.
The bipartite matching is section 3 of ToMe (Bolya et al., Token Merging: Your ViT But Faster,
ICLR 2023); the other two are the alternatives of its appendix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tomecore._checks import floating, rank, same_batch, whole_number
from tomecore._plan import MergePlan, compute_dtype
from tomecore.backends import Array, Backend, backend_of
from tomecore.errors import ArgumentValueError

__all__ = [
    "bipartite_soft_matching",
    "kth_bipartite_soft_matching",
    "matched",
    "random_bipartite_soft_matching",
]

#: keys shorter than this count as shorter, down to none at all: their squares leave float32's range
_SMALLEST = 1e-18


def bipartite_soft_matching(
    keys: Array,
    /,
    r: int,
    class_token: bool = False,
    distill_token: bool = False,
    *,
    protected: int | None = None,
    valid: Array | None = None,
    backend: Backend | None = None,
) -> MergePlan:
    """Merge the r even tokens that are most similar to an odd token, each into that token.

    Args:
        keys: (B, N, D) real floating point; tokens are compared by the cosine of their keys. A key
            of norm 0 has similarity 0 to all.
        r: tokens to merge, 0 <= r; capped at (N - protected) // 2.
        class_token: ToMe's name for ``protected=1``.
        distill_token: a second protected token; needs ``class_token``.
        protected: how many tokens at the front neither merge nor are merged into.
        valid: (B, N) bool, False for padding. Padding merges first, and a token merges into padding
            only where there is nothing else; merged with size 0 (:func:`tomecore.merge_weighted`),
            padding then changes nothing. None: there is none.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan whose slots are the protected tokens, then the unmerged even tokens, then the odd
        tokens. The unmerged even tokens are ascending if any token is protected; with none they come
        in descending order of similarity, as in ToMe. Ties go to the first token.

    Raises:
        ArgumentTypeError: ``r`` or ``protected`` not an integer, ``keys`` not a floating array.
        ArgumentValueError: a negative number, a wrong shape, ``distill_token`` without
            ``class_token``, or ``protected`` together with either.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    r = whole_number(r, "r", unit="tokens")
    protected = _protected(protected, class_token, distill_token)
    tokens = keys.shape[1]
    r = max(0, min(r, (tokens - protected) // 2))
    if r == 0:
        return _identity(backend, keys, tokens)

    if valid is not None:
        rank(valid, "valid", "(B, N)")
        same_batch(valid, "valid", keys, "`keys`")
        if valid.shape[1] != tokens or not backend.xp.isdtype(valid.dtype, "bool"):
            raise ArgumentValueError(
                f"`valid` must be bool with {tokens} tokens on axis 1, as `keys` has; "
                f"got {valid.dtype} of shape {tuple(valid.shape)}"
            )
    return matched(backend, keys, r, protected, valid)


def matched(
    backend: Backend, keys: Array, r: int, protected: int, valid: Array | None
) -> MergePlan:
    """:func:`bipartite_soft_matching` without checks, for 0 < r <= (N - protected) // 2."""
    xp, count = backend.xp, keys.shape[1]
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    units = _units(backend, keys)
    even, odd = backend.every_second(units, first_even), backend.every_second(units, first_odd)
    cosine = backend.products(even, odd)
    if valid is not None:
        padding = 1 - xp.astype(valid, cosine.dtype)[:, :, None]
        cosine = cosine - 4 * xp.permute_dims(backend.every_second(padding, first_odd), (0, 2, 1))
    best, where = backend.max_rows(cosine)
    if valid is not None:
        best = best + 8 * backend.every_second(padding, first_even)[:, :, 0]
    order = xp.argsort(best, axis=1, descending=True, stable=True)
    numbers = xp.take_along_axis(backend.numbers(order, first_even, count, 2), order, axis=1)
    gone, stay = numbers[:, :r], numbers[:, r:]
    partner = backend.argmax_rows(cosine, where, order[:, :r])
    tokens = [stay, backend.numbers(order, first_odd, count, 2), gone]
    if protected:
        front = backend.numbers(order, 0, protected, 1)
        tokens = [front, xp.sort(stay, axis=1), *tokens[1:]]
    into = xp.astype(partner, order.dtype, copy=False) + (protected + stay.shape[1])
    return MergePlan.made(backend, xp.concat(tokens, axis=1), into, count - r)


def kth_bipartite_soft_matching(
    keys: Array, /, k: int, *, backend: Backend | None = None
) -> MergePlan:
    """Keep every k-th token and merge all others into the kept token most similar to them.

    Args:
        keys: (B, N, D) real floating point.
        k: tokens per group, 0 <= k; the last of each is a destination. k <= 1 or N < k: the identity.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan with N // k destinations, then the N mod k tokens after the last whole group, untouched.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    k = whole_number(k, "k", unit="tokens")
    tokens = keys.shape[1]
    if k <= 1 or tokens < k:
        return _identity(backend, keys, tokens)

    groups = np.arange(tokens // k * k).reshape(-1, k)
    source = _asarray(backend, keys, groups[:, :-1].reshape(-1))
    target = _asarray(backend, keys, groups[:, -1])
    tail = _arange(backend, keys, groups.size, tokens)
    partner = _best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    kept = backend.xp.concat([column + target, column + tail], axis=1)
    return MergePlan(kept, column + source, partner, backend=backend)


def random_bipartite_soft_matching(
    keys: Array, /, r: int, seed: int = 0, *, backend: Backend | None = None
) -> MergePlan:
    """Merge r tokens chosen at random, each into the most similar of the others: a baseline.

    Args:
        keys: (B, N, D) real floating point.
        r: tokens to merge, 0 <= r; capped at N - 1.
        seed: of the one permutation of N tokens that the whole batch shares. It is drawn by NumPy
            (``numpy.random.default_rng(seed).permutation(N)``) whatever the library, so every
            backend chooses the same tokens: the first r are merged, the rest kept in that order.
        backend: the keys' backend; inferred if left out.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`bipartite_soft_matching`.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    r = whole_number(r, "r", unit="tokens")
    seed = whole_number(seed, "seed")
    tokens = keys.shape[1]
    r = max(0, min(r, tokens - 1))
    if r == 0:
        return _identity(backend, keys, tokens)

    permutation = np.random.default_rng(seed).permutation(tokens)
    source = _asarray(backend, keys, permutation[:r])
    target = _asarray(backend, keys, permutation[r:])
    partner = _best_partner(backend, keys, source, target)
    column = backend.xp.zeros_like(partner[:, :1])
    return MergePlan(column + target, column + source, partner, backend=backend)


def _protected(protected: int | None, class_token: bool, distill_token: bool) -> int:
    if distill_token and not class_token:
        raise ArgumentValueError(
            "`distill_token=True` needs `class_token=True`: the distillation token comes second. "
            "For other tokens at the front use `protected=`."
        )
    named = int(bool(class_token)) + int(bool(distill_token))
    if protected is None:
        return named
    if named:
        raise ArgumentValueError(
            f"`protected={protected!r}` and `class_token=`/`distill_token=` say the same thing twice; "
            "pass one of the two"
        )
    return whole_number(protected, "protected")


def _best_partner(backend: Backend, keys: Array, source: Array, target: Array) -> Array:
    """(B, s) int: the number of the target most similar to each source."""
    xp, units = backend.xp, _units(backend, keys)
    a, b = xp.take(units, source, axis=1), xp.take(units, target, axis=1)
    return xp.argmax(backend.products(a, b), axis=2)


def _units(backend: Backend, keys: Array) -> Array:
    """The keys at length 1, in which products are cosines; those of no length stay at 0."""
    xp = backend.xp
    keys = backend.detach(keys)
    keys = xp.astype(keys, compute_dtype(xp, keys.dtype), copy=False)
    return keys / xp.clip(backend.norm(keys), min=_SMALLEST)


def _identity(backend: Backend, keys: Array, tokens: int) -> MergePlan:
    xp = backend.xp
    numbers = _arange(backend, keys, 0, tokens)
    kept = xp.astype(xp.zeros_like(backend.detach(keys)[:, :1, 0]), numbers.dtype) + numbers
    return MergePlan(kept, kept[:, :0], kept[:, :0], backend=backend)


def _arange(backend: Backend, like: Array, start: int, stop: int, step: int = 1) -> Array:
    """(n,) token numbers on the device of ``like``, in its dtype if that is an integer.

    Otherwise in the library's own integer: int64, but int32 on JAX unless 64 bits were enabled.
    """
    xp = backend.xp
    dtype = like.dtype if xp.isdtype(like.dtype, "integral") else None
    return xp.arange(start, max(start, stop), step, dtype=dtype, device=backend.device(like))


def _asarray(backend: Backend, like: Array, numbers: Any) -> Array:
    return backend.xp.asarray(numbers, device=backend.device(like))
