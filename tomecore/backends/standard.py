"""What any library gets that speaks the array API standard and nothing else.

Both scatters are dense: right everywhere, differentiable everywhere, and O(n r) where a real scatter
is O(r). A library that has one should register it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "argmax_of_all",
    "device",
    "laid_end_to_end",
    "masked_scatter_max",
    "maxima",
    "one_hot_scatter_add",
    "products",
    "ranges",
    "root_of_squares",
    "sample_numbers",
    "sorted_permute",
    "taken",
]

Array = Any


def device(x: Array) -> Any:
    """The device of ``x`` as array-api-compat reports it."""
    import array_api_compat

    return array_api_compat.device(x)


def _hits(xp: Any, base: Array, index: Array) -> Array:
    """(B, n, r) bool: does update i of the sample go to row j?"""
    rows = xp.arange(base.shape[1], dtype=index.dtype, device=device(index))
    return rows[None, :, None] == index[:, None, :]


def one_hot_scatter_add(xp: Any) -> Callable[[Array, Array, Array], Array]:
    """Scatter-add as ``base + one_hot(index) @ updates``."""

    def scatter_add(base: Array, index: Array, updates: Array) -> Array:
        return base + xp.matmul(xp.astype(_hits(xp, base, index), base.dtype), updates)

    return scatter_add


def masked_scatter_max(xp: Any) -> Callable[[Array, Array, Array], Array]:
    """Scatter-max as a maximum over a (B, n, r, C) array in which other rows' updates are masked."""

    def scatter_max(base: Array, index: Array, updates: Array) -> Array:
        hits = _hits(xp, base, index)[:, :, :, None]
        base = base[:, :, None, :]
        here = xp.where(hits, updates[:, None, :, :], base)
        return xp.max(xp.concat([base, here], axis=2), axis=2)

    return scatter_max


def sample_numbers(xp: Any, device: Callable[[Array], Any]) -> Callable[[Array], Array]:
    """(B, 1): 0, 1, ... B-1."""

    def samples(index: Array) -> Array:
        return xp.arange(index.shape[0], dtype=index.dtype, device=device(index))[:, None]

    return samples


def ranges(backend: Any) -> Callable[[Array, int, int, int], Array]:
    """(B, n): the same range for each sample."""

    def numbers(index: Array, start: int, stop: int, step: int) -> Array:
        device = backend.device(index)
        one = backend.xp.arange(start, stop, step, dtype=index.dtype, device=device)
        return 0 * backend.samples(index) + one

    return numbers


def laid_end_to_end(backend: Any) -> Callable[[Array, int], Array]:
    """(B * r,): row numbers of the batch laid end to end."""

    def flat_rows(index: Array, rows: int) -> Array:
        return backend.xp.reshape(index + rows * backend.samples(index), (-1,))

    return flat_rows


def taken(backend: Any) -> Callable[[Array, int], Array]:
    """Every second token, by a take."""

    def every_second(x: Array, first: int) -> Array:
        numbers = backend.xp.arange(first, x.shape[1], 2, device=backend.device(x))
        return backend.xp.take(x, numbers, axis=1)

    return every_second


def sorted_permute(xp: Any) -> Callable[[Array, Array], Array]:
    """A scatter by a permutation is a gather by its inverse, and sorting a permutation inverts it."""

    def permute(index: Array, values: Array) -> Array:
        return xp.take_along_axis(values, xp.argsort(index, axis=1), axis=1)

    return permute


def products(xp: Any) -> Callable[[Array, Array], Array]:
    """Of each pair of rows."""

    def products(a: Array, b: Array) -> Array:
        return xp.matmul(a, xp.permute_dims(b, (0, 2, 1)))

    return products


def root_of_squares(xp: Any) -> Callable[[Array], Array]:
    """Euclidean length along the last axis, which is kept."""

    def norm(x: Array) -> Array:
        return xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))

    return norm


def maxima(xp: Any) -> Callable[[Array], tuple[Array, Array | None]]:
    """The maximum of each row; not where it is."""

    def max_rows(x: Array) -> tuple[Array, Array | None]:
        return xp.max(x, axis=2), None

    return max_rows


def argmax_of_all(xp: Any) -> Callable[[Array, Array | None, Array], Array]:
    """Along the last axis of all rows; then those of some rows are picked out."""

    def argmax_rows(x: Array, where: Array | None, index: Array) -> Array:
        where = xp.argmax(x, axis=2) if where is None else where
        return xp.take_along_axis(where, index, axis=1)

    return argmax_rows
