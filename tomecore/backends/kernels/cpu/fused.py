"""Matching and merging in two compiled kernels, for libraries whose arrays are in a CPU's memory.

Without kernels, a merge takes about forty calls of a library, and each costs microseconds whatever it
computes. The kernels are in the extra ``fast``: without Numba, and if an array is not
plain memory (gradients, graphs, other devices and dtypes), the library's calls are used, and the result is
the same to rounding.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tomecore.backends.arrays import Array, Bias, Index, Sizes, Tokens
from tomecore.backends.constants import ConstantCache

__all__ = [
    "ArrayMemory",
    "Fused",
    "Keys",
    "match_and_merge",
    "pays_off",
    "prepare",
    "unavailable",
]

#: elements of x that one thread merges in the time of the overhead of a library's calls
_ELEMENTS = 250_000
#: how much more memory the calls of a library move than the kernels do
_PASSES = 2.5
#: largest workspace that is cached, in numbers, and the limit for each thread, in bytes
_KEPT_FLOATS = 2**17
_KEPT_BYTES = 2**23


class Keys(NamedTuple):
    """The keys of a block, in the layout in which its attention computed them.

    Args:
        array: (B, H, N, D) or (B, N, H, D), or (B, N, H * D).
        axis: axis of the heads, 1 or 2; None if they are in the last axis.
        heads: H, the number of heads.
    """

    array: Array
    axis: int | None
    heads: int


class Fused(NamedTuple):
    """The results of one merge: its plan, the merged tokens, and what the next block needs.

    Args:
        tokens: (B, N) int64, the kept tokens, then the merged ones.
        into: (B, r) int64, the slot that each merged token goes to.
        source: (B, N0) int64, original token -> slot; None: it is composed from the plans if it is needed.
        x: the tokens, (B, n, C) in the dtype of the activations.
        sizes: their sizes, (B, n) float32.
        bias: (B, 1, 1, n), the logarithms of the sizes, in the dtype of the activations or of queries.
        slots: (B, N) int64, token -> slot; None: it is computed from ``tokens`` and ``into`` if it is needed.
    """

    tokens: Index
    into: Index
    source: Index | None
    x: Tokens
    sizes: Sizes
    bias: Bias
    slots: Index | None = None


class Workspace(NamedTuple):
    """Memory for normalized keys, and their products; each thread reuses its own.

    Args:
        even: (B, s, D) float32.
        odd: (B, t, D) float32.
        products: returns the products of the two, (B, s, t) float32, contiguous.
    """

    even: Array
    odd: Array
    products: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class ArrayMemory:
    """How to allocate arrays of a library, and how to find their layout in memory.

    Args:
        elements: arrays -> "float32" or "bfloat16" for each, if all are plain memory on the host without
            gradients, and no graph is traced; else None.
        strides: an array -> its strides, in elements.
        empty: ``(like, shape, dtype)``, where dtype is "float32", "int64" or None for that of ``like``.
        space: ``(x, B, s, t, D)`` -> a :class:`Workspace`, on the device of ``x``.
        threads: returns the number of threads of the library's calls.
    """

    elements: Callable[..., list[str] | None]
    strides: Callable[[Array], Sequence[int]]
    empty: Callable[[Array, tuple[int, ...], str | None], Array]
    space: Callable[[Array, int, int, int, int], Workspace]
    threads: Callable[[], int]


def pays_off(elements: int, threads: int) -> bool:
    """Whether kernels on one thread are faster than a library's calls on several, by elements of x."""
    return elements * (1 - _PASSES / threads) < _ELEMENTS


def match_and_merge(
    memory: ArrayMemory,
    keys: Keys,
    x: Tokens,
    size: Sizes | None,
    source: Callable[[], Index] | None,
    r: int,
    protected: int,
) -> Fused | None:
    """Match by the keys' cosine, merge r tokens, update the source; return None if the kernels cannot.

    Args:
        memory: the library.
        keys: the keys that tokens are compared by.
        x: (B, N, C).
        size: (B, N) float32, without padding; None: all tokens have size 1.
        source: returns (B, N0) int64, original token -> token of ``x``; None: ``x`` has the original ones.
        r: 0 < r <= (N - protected) // 2.
        protected: number of prefix tokens, which do not merge.
    """
    elements = memory.elements(x, keys.array)
    # In this order: compilers cannot follow the import in ``unavailable``.
    if elements is None or unavailable() is not None:
        return None
    batch, count, width = x.shape
    if not pays_off(batch * count * width, memory.threads()) or not fits(keys, batch, count):
        return None
    of_keys, of_tokens = kernels(elements[1]), kernels(elements[0])
    if of_keys is None or of_tokens is None:
        return None
    by_x, by_key = memory.strides(x), memory.strides(keys.array)
    if by_x[-1] != 1 or by_key[-1] != 1 or (size is not None and not size.is_contiguous()):
        return None
    before = None if source is None else source()
    if before is not None and not before.is_contiguous():
        return None
    if keys.axis is None:
        head = by_head = keys.array.shape[2] // keys.heads
        by_token = by_key[1]
    else:
        head, by_token, by_head = keys.array.shape[3], by_key[3 - keys.axis], by_key[keys.axis]
    evens = (count - protected - protected % 2 + 1) // 2
    space = workspace(memory, x, batch, evens, count - protected - evens, head)
    done = of_keys[0](
        keys.array.data_ptr(), batch, count, keys.heads, head, by_key[0], by_token, by_head, protected,
        space.even.data_ptr(), space.odd.data_ptr(),
    )  # fmt: skip
    if not done:
        raise MemoryError(
            f"out of memory for the keys of {batch} x {count} tokens; use a smaller batch"
        )
    cosine = space.products()
    originals = count if before is None else before.shape[1]
    after = memory.empty(x, (batch, originals), "int64")
    found = Fused(
        tokens=memory.empty(x, (batch, count), "int64"),
        into=memory.empty(x, (batch, r), "int64"),
        source=after,
        x=memory.empty(x, (batch, count - r, width), None),
        sizes=memory.empty(x, (batch, count - r), "float32"),
        bias=memory.empty(x, (batch, 1, 1, count - r), None),
    )
    done = of_tokens[1](
        cosine.data_ptr(), x.data_ptr(), batch, count, width, by_x[0], by_x[1], r, protected,
        size is not None, None if size is None else size.data_ptr(),
        originals, before is not None, None if before is None else before.data_ptr(),
        found.x.data_ptr(), found.sizes.data_ptr(), found.bias.data_ptr(),
        found.tokens.data_ptr(), found.into.data_ptr(), after.data_ptr(),
    )  # fmt: skip
    if not done:
        raise MemoryError(f"out of memory to merge {batch} x {count} tokens; use a smaller batch")
    return found


def fits(keys: Keys, batch: int, count: int) -> bool:
    """Whether there is a key for each token; if not, the library's calls raise an error that says why."""
    shape = keys.array.shape
    if keys.axis is None:
        return bool(shape[0] == batch and shape[1] == count and shape[2] % keys.heads == 0)
    return bool(shape[0] == batch and shape[3 - keys.axis] == count)


def workspace(
    memory: ArrayMemory, x: Tokens, batch: int, evens: int, odds: int, width: int
) -> Workspace:
    """Return the memory of one merge; this thread caches it, if it is small, for the next of these shapes."""
    floats = batch * (evens * odds + (evens + odds) * width)
    if floats > _KEPT_FLOATS:
        return memory.space(x, batch, evens, odds, width)
    shapes = (memory, batch, evens, odds, width)
    space: Workspace | None = _kept.spaces.get(shapes)
    if space is None:
        made = memory.space(x, batch, evens, odds, width)
        space = _kept.spaces.put(shapes, made, 4 * floats)
    return space


class Kept(threading.local):
    """The workspaces of each thread."""

    def __init__(self) -> None:
        self.spaces = ConstantCache(_KEPT_BYTES)


_kept = Kept()


@functools.cache
def kernels(element: str) -> tuple[Callable[..., int], Callable[..., int]] | None:
    """Return the two kernels for a dtype, compiled at the first call; None with a warning if that fails."""
    try:
        found: tuple[Any, Any] = importlib.import_module(
            "tomecore.backends.kernels.cpu.compile"
        ).compile_kernels(element)
    except Exception as error:  # noqa: BLE001 (a compiler or its cache may raise anything)
        warnings.warn(
            f"tomecore's kernels for {element} cannot be compiled ({type(error).__name__}: {error}), so "
            "merging uses the library's calls: the same numbers, slower. TOMECORE_KERNELS=0 turns them off.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found


def prepare(element: str) -> None:
    """Compile the kernels for a dtype, or load them if they are compiled; other dtypes have none."""
    if element in ("float32", "bfloat16") and unavailable() is None:
        kernels(element)


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels are unavailable; None if they are available."""
    if os.environ.get("TOMECORE_KERNELS", "1") == "0":
        return "switched off by TOMECORE_KERNELS=0"
    try:
        numba = importlib.import_module("numba")
    except (ImportError, OSError) as error:  # OSError: from its compiled library
        return f"Numba cannot be imported: {error}"
    if numba.config.DISABLE_JIT:
        return "Numba is switched off by NUMBA_DISABLE_JIT"
    return None
