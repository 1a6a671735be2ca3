"""Which array library an array belongs to, and the few operations the standard lacks.

The algorithms are written against the Python array API (2024.12). A :class:`Backend` is that
namespace for one library plus a scatter, because the standard has none. No library is imported
before one of its arrays arrives: libraries are recognised by the module that defines the array's
class, so a user's subclass of ``torch.Tensor`` is still torch, and Paddle's torch proxy (which makes
``import torch`` return Paddle) cannot mislead us.

A library that speaks the standard works without a line here, on the fallback in ``standard.py``.
A fast scatter is about ten lines: see ``jax.py`` for the shape of such a file.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tomecore.backends import standard
from tomecore.backends.kernels.cpu.fused import Fused, Keys
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Array", "Backend", "Fused", "Keys", "backend_of", "register"]

#: An array of any library; shapes and dtypes are in the docstrings.
Array = Any

Scatter = Callable[[Array, Array, Array], Array]


def _same(x: Array) -> Array:
    return x


def _never(*arguments: Any) -> None:
    return None


def _unset(base: Array, index: Array, updates: Array) -> Array:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


def _unset_one(x: Array) -> Array:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


def _unset_pair(x: Array, y: Array) -> Array:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


def _unset_two(x: Array) -> tuple[Array, Array | None]:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


def _unset_number(x: Array, number: int) -> Array:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


#: for libraries whose sum is not right everywhere
one_hot_scatter_add = standard.one_hot_scatter_add


def _always(x: Array) -> bool:
    return True


def _unset_range(x: Array, start: int, stop: int, step: int) -> Array:
    raise NotImplementedError("replaced by the standard fallback in Backend.__post_init__")


@dataclass(eq=False)
class Backend:
    """One array library: its standard namespace, and what the standard lacks.

    Args:
        name: what messages call it.
        xp: namespace following the array API standard, 2024.12.
        scatter_add: ``(base (B, n, C), index (B, r) int, updates (B, r, C)) -> (B, n, C)``, a new
            array: ``updates[b, i]`` added to row ``index[b, i]``, repeated indices accumulated, the
            dtype of ``base`` kept. Differentiable where the library is. Left out: a one-hot matmul.
        accumulate: ``(base (M, C) or (M,), rows (k,), updates (k, C) or (k,))``: ``updates[i]`` added to
            ``base[rows[i]]``, repeated rows accumulated. It may overwrite ``base``, which the caller made
            and gives up. Left out: ``scatter_add``.
        accumulate_2d: ``scatter_add`` for a ``base`` (B, n), which it may overwrite, and ``updates`` (B, r).
            Left out: ``scatter_add``.
        accumulates: ``base -> bool``, whether ``accumulate`` is right here; else ``scatter_add`` is called.
            Left out: it always is.
        scatter_max: as ``scatter_add``, with the maximum instead of the sum. Left out: a masked maximum.
        detach: cuts an array off from the library's gradients.
        device: the device of an array, in the form ``xp.arange(device=...)`` takes.
        samples: an index (B, r) -> (B, 1), the number of each sample, in its dtype and on its device.
            Left out: an arange of the batch size.
        numbers: ``(index (B, r), start, stop, step) -> (B, n)``, the same range for each sample, in the dtype
            of ``index`` and on its device. Left out: by ``samples``.
        flat_rows: ``(index (B, r), n) -> (B * r,)``: index into n rows of each sample, as row numbers of the
            batch laid end to end. Left out: by ``samples``.
        every_second: ``(x (B, N, D), first) -> (B, n, D)``, the tokens first, first + 2, ... Left out: a
            take, because a strided slice is a slow copy in some libraries, and in others another graph.
        products: ``(a (B, s, D), b (B, t, D)) -> (B, s, t)``, of each pair, in the precision of their dtype
            whatever settings allow (TF32). Left out: a matmul, which follows them.
        norm: (B, N, D) -> (B, N, 1), the Euclidean length of each row. Left out: by squares and a root.
        max_rows: ``x (B, s, t) -> (values (B, s), where)``: the maximum of each row, and where it is, (B, s),
            if that comes with it; else None. Left out: the maximum alone.
        argmax_rows: ``(x (B, s, t), where, index (B, r)) -> (B, r)``: where each of these rows is largest,
            the first place if there are several; ``where`` as ``max_rows`` gave it. Left out: an argmax of
            all rows.
        fused: ``(keys, x, size, source, r, protected)`` of ``kernels/cpu/fused.py``:
            matching and merging in one go, or None where that is not to be had. Left out: it never is.
        permute: ``(index (B, N), values (B, N))``: ``out[b, index[b, j]] = values[b, j]``, where each
            row of ``index`` is a permutation. Left out: a sort of the permutation.
    """

    name: str
    xp: Any
    scatter_add: Scatter = _unset
    scatter_max: Scatter = _unset
    detach: Callable[[Array], Array] = _same
    device: Callable[[Array], Any] = standard.device
    samples: Callable[[Array], Array] = _unset_one
    numbers: Callable[[Array, int, int, int], Array] = _unset_range
    flat_rows: Callable[[Array, int], Array] = _unset_number
    every_second: Callable[[Array, int], Array] = _unset_number
    accumulate: Scatter | None = None
    accumulate_2d: Scatter | None = None
    accumulates: Callable[[Array], bool] = _always
    permute: Callable[[Array, Array], Array] = _unset_pair
    products: Callable[[Array, Array], Array] = _unset_pair
    norm: Callable[[Array], Array] = _unset_one
    max_rows: Callable[[Array], tuple[Array, Array | None]] = _unset_two
    argmax_rows: Callable[[Array, Array | None, Array], Array] = _unset
    fused: Callable[..., Fused | None] = _never

    def __post_init__(self) -> None:
        if self.scatter_add is _unset:
            self.scatter_add = standard.one_hot_scatter_add(self.xp)
        if self.scatter_max is _unset:
            self.scatter_max = standard.masked_scatter_max(self.xp)
        if self.samples is _unset_one:
            self.samples = standard.sample_numbers(self.xp, self.device)
        if self.numbers is _unset_range:
            self.numbers = standard.ranges(self)
        if self.flat_rows is _unset_number:
            self.flat_rows = standard.laid_end_to_end(self)
        if self.every_second is _unset_number:
            self.every_second = standard.taken(self)
        if self.permute is _unset_pair:
            self.permute = standard.sorted_permute(self.xp)
        if self.products is _unset_pair:
            self.products = standard.products(self.xp)
        if self.norm is _unset_one:
            self.norm = standard.root_of_squares(self.xp)
        if self.max_rows is _unset_two:
            self.max_rows = standard.maxima(self.xp)
        if self.argmax_rows is _unset:
            self.argmax_rows = standard.argmax_of_all(self.xp)

    def add_rows(
        self, base: Array, index: Array, updates: Array, rows: Array, num_slots: int
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

    def add_sizes(self, base: Array, index: Array, updates: Array) -> Array:
        """``base`` (B, n), which the caller gives up, plus ``updates`` (B, r) at ``index`` (B, r)."""
        if self.accumulate_2d is not None:
            return self.accumulate_2d(base, index, updates)
        return self.scatter_add(base[:, :, None], index, updates[:, :, None])[:, :, 0]


#: Top-level module of an array's class -> a backend, or the module here that holds its BACKEND.
_known: dict[str, Backend | str | Callable[[], Backend]] = {
    "numpy": "tomecore.backends.numpy",
    "torch": "tomecore.backends.torch",
    "paddle": "tomecore.backends.paddle",
    "jax": "tomecore.backends.jax",
    "jaxlib": "tomecore.backends.jax",
}
_by_type: dict[type, Backend] = {}


def register(module: str, backend: Backend | Callable[[], Backend]) -> None:
    """Teach tomecore an array library, or replace what it knows about one.

    Args:
        module: top-level module of the library's array class, for example ``"cupy"``.
        backend: a Backend, or a function without arguments that returns one; it is called when the
            first array of that library arrives, so nothing has to be imported before.

    Raises:
        ArgumentTypeError: ``backend`` is neither.
        ArgumentValueError: ``module`` is not a top-level module name.
    """
    if not isinstance(module, str) or not module.isidentifier():
        raise ArgumentValueError(
            f"`module` must be the top-level module name of an array class, such as 'cupy'; got {module!r}"
        )
    if not isinstance(backend, Backend) and not callable(backend):
        raise ArgumentTypeError(
            "`backend` must be a tomecore.backends.Backend or a function returning one; "
            f"got {type(backend).__name__}"
        )
    _known[module] = backend
    _by_type.clear()


def backend_of(*arrays: Array) -> Backend:
    """Return the backend that all ``arrays`` belong to; importing it if this is its first array.

    Raises:
        ArgumentTypeError: an argument is not an array of a known or standard library, or the arrays
            come from different libraries.
    """
    found = [_by_type.get(type(array)) or _find(array) for array in arrays]
    if any(one is not found[0] for one in found):
        names = ", ".join(one.name for one in found)
        raise ArgumentTypeError(
            f"all arrays of one call must come from one library; got {names}. "
            "Convert them first, for example with `to_array.from_dlpack(array)`."
        )
    return found[0]


def _find(array: Array) -> Backend:
    roots = [cls.__module__.partition(".")[0] for cls in type(array).__mro__]
    root = next((root for root in roots if root in _known), None)
    if root is None:
        backend = _from_standard(array)
    elif hasattr(array, "shape"):
        backend = _load(_known[root])
        _known.update({root: backend})
    else:
        raise _not_an_array(array)
    _by_type.update({type(array): backend})
    return backend


def _load(entry: Backend | str | Callable[[], Backend]) -> Backend:
    if isinstance(entry, Backend):
        return entry
    if isinstance(entry, str):
        backend: Backend = importlib.import_module(entry).BACKEND
        return backend
    return entry()


def _from_standard(array: Array) -> Backend:
    """The zero-line path: any object with a standard namespace, as array-api-compat finds it."""
    import array_api_compat

    try:
        xp = array_api_compat.array_namespace(array)
    except TypeError:
        raise _not_an_array(array) from None
    name = xp.__name__.removeprefix("array_api_compat.")
    return next((b for b in _by_type.values() if b.xp is xp), None) or Backend(name=name, xp=xp)


def _not_an_array(found: Any) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"expected an array (NumPy, PyTorch, Paddle, JAX or any array-API library); got "
        f"{type(found).__module__}.{type(found).__qualname__}. Convert it first, or teach "
        "tomecore the library with tomecore.backends.register."
    )
