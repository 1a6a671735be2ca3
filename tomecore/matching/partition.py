"""Match within a partition that the caller chooses: which tokens may merge, and which they may merge into.

Similarities are computed for a part of the sources at a time, so memory does not grow with the number of
pairs, and hundreds of thousands of tokens can be matched.
"""

from __future__ import annotations

import numpy as np

from tomecore.backends import Array, Backend, backend_of
from tomecore.core.checks import floating, integral, rank, same_batch, whole_number
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.matching.similarity import (
    asarray_like,
    best_in_chunks,
    identity_plan,
    token_numbers,
)

__all__ = ["partition_matching"]


def partition_matching(
    keys: Array,
    sources: Array,
    destinations: Array,
    r: int | None = None,
    *,
    chunk: int | None = None,
    backend: Backend | None = None,
) -> MergePlan:
    """Merge the r sources that are most similar to a destination, each into that destination.

    Tokens that are neither sources nor destinations stay as they are: to protect a token, leave it out of
    both. :mod:`tomecore.matching.partitions` computes partitions of grids and videos.

    Args:
        keys: (B, N, D) real floating point; tokens are compared by the cosine of their keys. A key
            of norm 0 has similarity 0 to every token.
        sources: (S,) int, for all samples, or (B, S); the tokens that may merge. An array of the library of
            the keys, or of NumPy. No token may be repeated, or be a destination too.
        destinations: (T,) or (B, T) int, in the same form; the tokens that may be merged into. S and T are
            read from the shapes, so they are fixed in a traced graph.
        r: sources to merge, 0 <= r <= S. None: all of them.
        chunk: sources whose similarities are computed at a time, at least 1. Fewer take less memory.
            None: as many as fit into 2**24 numbers for each sample, 64 MiB in float32. The result is the
            same, unless two similarities are closer than the rounding of the library's product.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan whose slots are the tokens that do not merge, in ascending order, whatever the order of
        ``sources`` and ``destinations``. ``merged`` has the order of ``sources``. In a tie, the first
        source merges, and the first destination is taken.

    Raises:
        ArgumentTypeError: ``sources`` or ``destinations`` is not an array of integers or comes from another
            library, ``r`` or ``chunk`` is not an integer, or ``keys`` is not floating point.
        ArgumentValueError: a wrong shape, sources without a destination, more sources and destinations than
            tokens, ``r`` or ``chunk`` out of range; a token number that is out of range, repeated, or in
            both arrays. Token numbers are checked in NumPy arrays and in CPU arrays of PyTorch, Paddle and
            JAX. They are not checked in traced graphs, on other devices and in other libraries, because
            that would make the host wait for the device; wrong numbers then give a meaningless plan, or an
            error of the library.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    tokens = keys.shape[1]
    sources, source_values = _read(backend, keys, sources, "sources", "S")
    destinations, destination_values = _read(backend, keys, destinations, "destinations", "T")
    count, targets = int(sources.shape[-1]), int(destinations.shape[-1])
    r = count if r is None else whole_number(r, "r", unit="tokens")
    if r > count:
        raise ArgumentValueError(
            f"`r` must be at most {count}, the number of `sources`; got {r}. "
            "Leave it out to merge all of them."
        )
    chunk = None if chunk is None else whole_number(chunk, "chunk", at_least=1, unit="sources")
    if count and not targets:
        raise ArgumentValueError(
            f"`destinations` must hold at least one token, which the {count} `sources` can merge into; "
            f"got shape {tuple(destinations.shape)}. Leave `sources` empty to merge nothing."
        )
    if count + targets > tokens:
        raise ArgumentValueError(
            f"`sources` and `destinations` must not overlap, so together they hold at most {tokens} tokens; "
            f"got {count + targets}. Leave out repeated tokens, for example with numpy.unique."
        )
    _check_values(source_values, destination_values, tokens)
    if r == 0:
        return identity_plan(backend, keys, tokens)

    sources = _for_each_sample(backend, keys, sources)
    destinations = _for_each_sample(backend, keys, destinations)
    return match_partition(backend, keys, sources, destinations, r, chunk)


def match_partition(
    backend: Backend,
    keys: Array,
    sources: Array,
    destinations: Array,
    r: int,
    chunk: int | None,
) -> MergePlan:
    """Compute :func:`partition_matching` without checks, for indices (B, S) and (B, T) and 0 < r <= S."""
    xp, count = backend.xp, sources.shape[1]
    best, partner = best_in_chunks(backend, keys, sources, destinations, chunk, r < count)
    if r < count:
        order = xp.argsort(best, axis=1, descending=True, stable=True)
        chosen = xp.sort(order[:, :r], axis=1)
        sources = xp.take_along_axis(sources, chosen, axis=1)
        partner = xp.take_along_axis(partner, chosen, axis=1)
    into = xp.take_along_axis(destinations, partner, axis=1)
    return _plan_of(backend, sources, into, keys.shape[1])


def _plan_of(backend: Backend, merged: Array, into: Array, tokens: int) -> MergePlan:
    """Return the plan that merges the tokens ``merged`` (B, r) into the tokens ``into`` (B, r).

    It sorts instead of scattering, because the scatter of an unknown library may be a dense product.
    """
    xp, r = backend.xp, merged.shape[1]
    numbers = backend.batched_arange(merged, 0, tokens, 1)
    # All tokens are sorted together with a second copy of those that merge. So the place of token i is i plus
    # the number of tokens before it that merge.
    order = xp.argsort(xp.concat([2 * numbers, 2 * merged + 1], axis=1), axis=1)
    places = backend.permute(order, backend.batched_arange(merged, 0, tokens + r, 1))
    place = places[:, :tokens]
    slots = 2 * numbers - place
    following = xp.concat([place[:, 1:], 0 * place[:, :1] + (tokens + r)], axis=1)
    merges = following - place - 1  # 1 if the token merges
    kept = xp.argsort(numbers + tokens * merges, axis=1)[:, : tokens - r]
    slot = xp.take_along_axis(slots, into, axis=1)
    return MergePlan.unchecked(backend, xp.concat([kept, merged], axis=1), slot, tokens - r)


def _for_each_sample(backend: Backend, keys: Array, indices: Array) -> Array:
    """Return the indices as (B, n), in the default integer dtype of the library."""
    xp = backend.xp
    dtype = token_numbers(backend, keys, 0, 1).dtype
    column = xp.astype(xp.zeros_like(backend.detach(keys)[:, :1, 0]), dtype)
    return column + xp.astype(indices, dtype, copy=False)


def _read(
    backend: Backend, keys: Array, indices: Array, name: str, letter: str
) -> tuple[Array, np.ndarray | None]:
    """Return the indices as an array of the library, and their values if they can be read at once.

    Raises:
        ArgumentTypeError: they are not an array of integers, or come from another library.
        ArgumentValueError: their shape is wrong.
    """
    if isinstance(indices, np.ndarray):
        values = backend.host_values(indices)  # None while a graph is traced
        if values is not None and values.dtype.kind in "iu":
            indices = np.array(values, dtype=np.int64)  # a copy: PyTorch warns of read-only arrays
        elif values is not None:
            raise ArgumentTypeError(f"`{name}` must hold integers; got dtype {values.dtype}")
        indices = asarray_like(backend, keys, indices)
    else:
        _check_library(backend, keys, indices, name)
        values = backend.host_values(indices)
    integral(backend.xp, indices, name)
    if len(indices.shape) not in (1, 2):
        raise ArgumentValueError(
            f"`{name}` must have shape ({letter},), for all samples, or (B, {letter}); "
            f"got shape {tuple(indices.shape)}"
        )
    if len(indices.shape) == 2:
        same_batch(indices, name, keys, "`keys`")
    return indices, None if values is None else np.atleast_2d(values)


def _check_library(backend: Backend, keys: Array, indices: Array, name: str) -> None:
    if type(indices) is type(keys):
        return
    known = hasattr(indices, "shape") and hasattr(indices, "dtype")
    if known and backend_of(indices) is backend:
        return
    raise ArgumentTypeError(
        f"`{name}` must be an array of integers, of NumPy or the library of the keys, {backend.name}; "
        f"got {type(indices).__module__}.{type(indices).__qualname__}. "
        "Convert it, for example with numpy.asarray."
    )


def _check_values(sources: np.ndarray | None, destinations: np.ndarray | None, tokens: int) -> None:
    """Raise unless every token number exists and occurs once; only values that are known are checked."""
    for values, name in ((sources, "sources"), (destinations, "destinations")):
        if values is not None:
            _check_numbers(values, name, tokens)
    if sources is None or destinations is None:
        return
    member = np.zeros((max(len(sources), len(destinations)), tokens), dtype=bool)
    sample = np.arange(len(member))[:, None]
    member[sample, sources] = True
    both = member[sample, destinations]
    if both.any():
        row, column = np.argwhere(both)[0]
        token = np.broadcast_to(destinations, both.shape)[row, column]
        raise ArgumentValueError(
            f"`sources` and `destinations` must not overlap; got token {token} in both"
            f"{_in_sample(both, row)}. Leave it out of one of them, for example with "
            "numpy.setdiff1d(sources, destinations)."
        )


def _check_numbers(values: np.ndarray, name: str, tokens: int) -> None:
    outside = (values < 0) | (values >= tokens)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ArgumentValueError(
            f"`{name}` must hold token numbers from 0 to {tokens - 1}; got {values[row, column]}"
            f"{_in_sample(values, row)}. Count the tokens of `keys` from 0; negative numbers do not count "
            "from the end."
        )
    ordered = np.sort(values, axis=1)
    repeated = ordered[:, 1:] == ordered[:, :-1]
    if repeated.any():
        row, column = np.argwhere(repeated)[0]
        raise ArgumentValueError(
            f"`{name}` must hold each token once; got token {ordered[row, column]} more than once"
            f"{_in_sample(values, row)}. Leave out repeated tokens, for example with numpy.unique."
        )


def _in_sample(values: np.ndarray, row: int) -> str:
    return f" in sample {row}" if len(values) > 1 else ""
