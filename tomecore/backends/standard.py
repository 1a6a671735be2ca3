"""The base class of all backends: every operation that merging needs, in the array API standard.

A library that follows the standard needs nothing else. The scatters here are dense and cost O(n r), while a
real scatter costs O(r), so a library that has a scatter should override them.

Static graphs convert the source of these methods, so they must not use keyword-only arguments, lambdas or
generators.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from tomecore.backends.arrays import Array, Index, Rows, Sizes, TokenKeys, Tokens
from tomecore.backends.kernels.cpu.fused import Fused, Keys
from tomecore.errors import ArgumentTypeError

__all__ = ["Array", "Backend"]

#: methods that may be passed to the constructor, in the order of its arguments
_METHODS = (
    *(
        "scatter_add",
        "scatter_max",
        "detach",
        "device",
        "batch_index",
        "batched_arange",
        "flat_rows",
    ),
    *("every_second", "accumulate", "accumulate_2d", "accumulates", "permute", "products", "norm"),
    *("max_rows", "argmax_rows", "fused", "host_values", "on_host", "fuses_fully"),
    *("even_and_odd", "take_range", "sum_in", "average_rows"),
)
#: names that the constructor once had for two of them
_OLD_NAMES = {"samples": "batch_index", "numbers": "batched_arange"}


class Backend:
    """One array library: its standard namespace, and the operations that the standard lacks.

    Every method has a default in the standard. A library overrides those that it can do faster, in a subclass
    or by functions passed to the constructor: ``Backend("mylib", xp, scatter_add=my_scatter_add)``. Such a
    function takes the arguments of the method without ``self``. ``tomecore.backends.check`` checks
    the result.

    Two methods have no default, because they may overwrite their first argument, which the caller gives up.
    Without them, ``scatter_add`` is called:

    - ``accumulate(base, rows, updates)``: adds ``updates[i]`` to ``base[rows[i]]`` and returns the result;
      repeated rows accumulate. ``base`` is (M, C) or (M,), ``rows`` (k,) int, ``updates`` (k, C) or (k,).
    - ``accumulate_2d(base, index, updates)``: ``scatter_add`` for ``base`` (B, n) and ``updates`` (B, r).

    Args:
        name: how messages name the library.
        xp: namespace that follows the array API standard, 2024.12.
        functions: functions that replace methods, in this order: ``scatter_add``, ``scatter_max``,
            ``detach``, ``device``, ``batch_index``, ``batched_arange``, ``flat_rows``, ``every_second``,
            ``accumulate``, ``accumulate_2d``, ``accumulates``, ``permute``, ``products``, ``norm``,
            ``max_rows``, ``argmax_rows``, ``fused``, ``host_values``,
            ``on_host``, ``even_and_odd``, ``take_range``, ``sum_in``, ``average_rows``,
            ``fuses_fully``.
        named: the same by name. ``samples`` and ``numbers`` are old names of ``batch_index`` and
            ``batched_arange``.

    Raises:
        ArgumentTypeError: a function does not match a method, was passed twice, or cannot be called.
    """

    accumulate: Callable[[Array, Array, Array], Array] | None = None
    accumulate_2d: Callable[[Sizes, Index, Sizes], Sizes] | None = None

    def __init__(
        self,
        name: str,
        xp: Any,
        *functions: Callable[..., Any] | None,
        **named: Callable[..., Any] | None,
    ) -> None:
        self.name = name
        self.xp = xp
        for method, function in _replacements(functions, named).items():
            setattr(self, method, function)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def scatter_add(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        """Add ``updates[b, i]`` to row ``index[b, i]`` of ``base``; repeated indices accumulate.

        Args:
            base: (B, n, C); it is not changed.
            index: (B, r) int.
            updates: (B, r, C).

        Returns:
            (B, n, C), a new array in the dtype of ``base``, differentiable if the library is. The default is
            a product with a one-hot matrix.
        """
        xp = self.xp
        return base + xp.matmul(xp.astype(self._hits(base, index), base.dtype), updates)

    def scatter_max(self, base: Tokens, index: Index, updates: Tokens) -> Tokens:
        """Do the same as ``scatter_add``, with the maximum instead of the sum; by default with a mask."""
        xp = self.xp
        hits = self._hits(base, index)[:, :, :, None]
        base = base[:, :, None, :]
        here = xp.where(hits, updates[:, None, :, :], base)
        return xp.max(xp.concat([base, here], axis=2), axis=2)

    def _hits(self, base: Tokens, index: Index) -> Array:
        """Return (B, n, r) bool: whether update i of the sample goes to row j."""
        rows = self.xp.arange(base.shape[1], dtype=index.dtype, device=self.device(index))
        return rows[None, :, None] == index[:, None, :]

    def accumulates(self, base: Array) -> bool:
        """Whether ``accumulate``, if there is one, works for ``base``; if not, ``scatter_add`` is called."""
        return True

    def add_rows(
        self, base: Array, index: Index, updates: Array, rows: Array, num_slots: int
    ) -> Array:
        """Add ``updates`` (B * r, C) to rows of ``base`` (B * n, C), which the caller gives up.

        ``rows`` (B * r,) says which rows, and so does ``index`` (B, r), within each sample of
        ``num_slots`` = n rows.
        """
        if self.accumulate is not None and self.accumulates(base):
            return self.accumulate(base, rows, updates)
        width = base.shape[1]
        base = self.xp.reshape(base, (-1, num_slots, width))
        updates = self.xp.reshape(updates, (-1, index.shape[1], width))
        return self.xp.reshape(self.scatter_add(base, index, updates), (-1, width))

    def add_sizes(self, base: Sizes, index: Index, updates: Sizes) -> Sizes:
        """Add ``updates`` (B, r) to ``base`` (B, n), which the caller gives up, at ``index`` (B, r)."""
        if self.accumulate_2d is not None:
            return self.accumulate_2d(base, index, updates)
        return self.scatter_add(base[:, :, None], index, updates[:, :, None])[:, :, 0]

    def detach(self, x: Array) -> Array:
        """Return ``x`` detached from the library's gradients; the default returns ``x`` itself."""
        return x

    def device(self, x: Array) -> Any:
        """Return the device of ``x`` in the form that ``xp.arange(device=...)`` takes."""
        import array_api_compat

        return array_api_compat.device(x)

    def batch_index(self, index: Index) -> Array:
        """Return (B, 1), the number of each sample, in the dtype and on the device of ``index`` (B, r)."""
        xp = self.xp
        return xp.arange(index.shape[0], dtype=index.dtype, device=self.device(index))[:, None]

    def batched_arange(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Return (B, n), the same range for each sample, in the dtype and on the device of ``index``."""
        device = self.device(index)
        one = self.xp.arange(start, stop, step, dtype=index.dtype, device=device)
        return 0 * self.batch_index(index) + one

    def flat_rows(self, index: Index, rows: int) -> Array:
        """Return ``index`` (B, r) into samples of ``rows`` rows as rows (B * r,) of the flattened batch."""
        return self.xp.reshape(index + self.first_rows(index, rows), (-1,))

    def every_second(self, x: TokenKeys, first: int) -> TokenKeys:
        """Return the tokens ``first``, ``first + 2``, ... of ``x`` (B, N, D).

        The default uses a take, because a strided slice is a slow copy in some libraries, and changes the
        graph in others.
        """
        tokens = self.xp.arange(first, x.shape[1], 2, device=self.device(x))
        return self.xp.take(x, tokens, axis=1)

    def even_and_odd(
        self, x: TokenKeys, first_even: int, first_odd: int
    ) -> tuple[TokenKeys, TokenKeys]:
        """Return :meth:`every_second` of ``x`` from each of two neighbouring tokens."""
        return self.every_second(x, first_even), self.every_second(x, first_odd)

    def take_range(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Return the numbers at ``index`` (B, n) of a range, which are start + step * index."""
        numbers = self.batched_arange(index, start, stop, step)
        return self.xp.take_along_axis(numbers, index, axis=1)

    def permute(self, index: Index, values: Index) -> Index:
        """Return ``out`` with ``out[b, index[b, j]] = values[b, j]``, rows of ``index`` being permutations.

        The default gathers by the inverse of the permutation, which it gets by sorting.
        """
        xp = self.xp
        return xp.take_along_axis(values, xp.argsort(index, axis=1), axis=1)

    def products(self, a: TokenKeys, b: TokenKeys) -> Array:
        """Multiply each row of ``a`` (B, s, D) with each row of ``b`` (B, t, D), giving (B, s, t).

        An override must compute in the precision of their dtype, even if settings allow less (TF32). The
        default is a matmul, which follows the settings.
        """
        return self.xp.matmul(a, self.xp.permute_dims(b, (0, 2, 1)))

    def norm(self, x: TokenKeys) -> Array:
        """Return (B, N, 1), the Euclidean length of each row of ``x`` (B, N, D)."""
        return self.xp.sqrt(self.xp.sum(x * x, axis=-1, keepdims=True))

    def max_rows(self, x: Array) -> tuple[Array, Array | None]:
        """Return the maximum of each row of ``x`` (B, s, t), and its position (None: unknown)."""
        return self.xp.max(x, axis=2), None

    def argmax_rows(self, x: Array, where: Array | None, index: Index) -> Index:
        """Return the positions (B, r) of the first maximum in the rows ``index`` (B, r) of ``x`` (B, s, t).

        ``where`` holds the positions that ``max_rows`` returned.
        """
        xp = self.xp
        where = xp.argmax(x, axis=2) if where is None else where
        return xp.take_along_axis(where, index, axis=1)

    def rows_of_pairs(
        self, order: Index, partner: Index, r: int, protected: int, tokens: int
    ) -> Rows | None:
        """Return the plan of bipartite matching; None: the array-API form computes it.

        Args:
            order: (B, s) int, the even tokens by descending similarity, counted among even tokens.
            partner: (B, r) int, the odd token that each of the first r merges into, counted among odd ones.
            r: how many of them merge.
            protected: number of prefix tokens.
            tokens: N.
        """
        return None

    def tokens_of_rows(self, rows: Rows, num_tokens: int, num_slots: int) -> tuple[Index, Index]:
        """Return the kept tokens, then the merged ones, (B, N), and the slots (B, r) of these."""
        xp = self.xp
        kept = xp.reshape(rows.kept, (-1, num_slots))
        merged = xp.reshape(rows.pairs, (2, -1, num_tokens - num_slots))[0]
        into = xp.reshape(rows.into, (-1, num_tokens - num_slots))
        tokens = xp.concat([kept, merged], axis=1)
        return tokens - self.first_rows(tokens, num_tokens), into - self.first_rows(into, num_slots)

    def slots_of_rows(self, rows: Rows, num_tokens: int, num_slots: int) -> Index:
        """Return (B, N), the slot that holds each token, from ``rows``."""
        tokens, into = self.tokens_of_rows(rows, num_tokens, num_slots)
        own = self.batched_arange(into, 0, num_slots, 1)
        return self.permute(tokens, self.xp.concat([own, into], axis=1))

    def first_rows(self, index: Index, rows: int) -> Array:
        """Return (B, 1), the first row of each sample of ``rows`` rows; the dtype is that of ``index``."""
        return rows * self.batch_index(index)

    def sum_in(self, x: Array, axis: int, dtype: Any) -> Array:
        """Return the sum of ``x`` over an axis, computed in ``dtype``."""
        return self.xp.sum(self.xp.astype(x, dtype, copy=False), axis=axis)

    def average_rows(
        self, plan: Any, x: Tokens, size: Sizes | None, padded: bool
    ) -> tuple[Tokens, Sizes] | None:
        """Compute ``tomecore.core.mean.weighted_mean``; None: the array-API form computes it."""
        return None

    def fused(
        self,
        keys: Keys,
        x: Tokens,
        size: Sizes | None,
        source: Callable[[], Index] | None,
        r: int,
        protected: int,
    ) -> Fused | None:
        """Match and merge in compiled kernels (``kernels/README.md``); return None if they cannot."""
        return None

    def fuses_fully(self, x: Tokens) -> bool:
        """Whether ``fused`` has gradients, and takes padding (sizes of 0), for arrays like ``x``.

        Then it is also called in training and with padding. If it returns None for some arrays, it must do so
        with and without gradients, because a checkpoint computes a block both ways.
        """
        return False

    def host_values(self, x: Any) -> Any:
        """Return the values of ``x``, an array of this library or of NumPy, as a NumPy array.

        It returns None if reading them would make the host wait for another device, or if a graph is traced.
        Token numbers are checked where they can be read. The default reads only NumPy's arrays.
        """
        return x if type(x).__module__ == "numpy" else None

    def on_host(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``, which reads no array; a tracer stores the result as a constant."""
        return function(*arguments)

    def samples(self, index: Index) -> Array:
        """Call :meth:`batch_index`, under its old name."""
        return self.batch_index(index)

    def numbers(self, index: Index, start: int, stop: int, step: int) -> Index:
        """Call :meth:`batched_arange`, under its old name."""
        return self.batched_arange(index, start, stop, step)


def _replacements(
    functions: tuple[Callable[..., Any] | None, ...], named: dict[str, Callable[..., Any] | None]
) -> dict[str, Callable[..., Any]]:
    """Return the functions by the names of the methods that they replace; None keeps the default."""
    if len(functions) > len(_METHODS):
        raise ArgumentTypeError(
            f"Backend takes a name, a namespace and at most {len(_METHODS)} functions; got {len(functions)}"
        )
    found: dict[str, Callable[..., Any]] = {}
    given = [*zip(_METHODS, functions, strict=False), *named.items()]
    for name, function in given:
        method = _OLD_NAMES.get(name, name)
        if method not in _METHODS:
            near = get_close_matches(name, _METHODS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ArgumentTypeError(
                f"`{name}` must be one of the methods of Backend that a function can replace: "
                f"{', '.join(_METHODS)}.{hint}"
            )
        if function is None:
            continue
        if method in found:
            raise ArgumentTypeError(f"`{method}` was passed twice; pass one function for it")
        if not callable(function):
            raise ArgumentTypeError(
                f"`{name}` must be a function that replaces Backend.{method}; "
                f"got {type(function).__name__}"
            )
        found[method] = function
    return found
