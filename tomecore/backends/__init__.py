"""Find the array library that an array belongs to, and the few operations that the standard lacks.

The algorithms are written against the Python array API (2024.12). A :class:`Backend` holds that
namespace for one library, and the operations that the standard lacks or the library has faster. A library is
imported only when one of its arrays arrives: it is recognised by the module that defines the array's
class, so a user's subclass of ``torch.Tensor`` is still torch, and Paddle's torch proxy (with which
``import torch`` returns Paddle) does not mislead it.

A library that follows the standard needs no code here and uses the defaults of :class:`Backend`;
:func:`check` says whether a library does. A fast scatter takes about ten lines: ``jax.py`` is an example.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tomecore.backends.arrays import Array, Bias, Index, Mask, Rows, Sizes, TokenKeys, Tokens
from tomecore.backends.conformance import faults_of
from tomecore.backends.kernels.cpu.fused import Fused, Keys
from tomecore.backends.required import REQUIRED, gaps_of
from tomecore.backends.standard import Backend
from tomecore.errors import ArgumentTypeError, ArgumentValueError, UnsupportedLibraryError

__all__ = [
    "REQUIRED",
    "Array",
    "Backend",
    "Bias",
    "Fused",
    "Index",
    "Keys",
    "Mask",
    "Rows",
    "Sizes",
    "TokenKeys",
    "Tokens",
    "backend_of",
    "check",
    "register",
]

#: Top-level module of an array's class -> a backend, or the module of tomecore that holds its BACKEND.
_known: dict[str, Backend | str | Callable[[], Backend]] = {
    "numpy": "tomecore.backends.numpy",
    "torch": "tomecore.backends.torch",
    "paddle": "tomecore.backends.paddle",
    "jax": "tomecore.backends.jax",
    "jaxlib": "tomecore.backends.jax",
}
#: libraries whose backends are not searched for gaps: a compiler would trace the search with the first call
_OWN = frozenset(_known)
#: names of a namespace that no array has
_NOT_OF_ARRAYS = ("arange", "asarray", "isdtype", "zeros_like")
_by_type: dict[type, Backend] = {}
#: backends of other libraries that were checked and lack nothing
_complete: set[Backend] = set()


def register(module: str, backend: Backend | Callable[[], Backend]) -> None:
    """Register a backend for an array library, or replace its backend.

    Args:
        module: top-level module of the library's array class, for example ``"cupy"``.
        backend: a Backend, or a function without arguments that returns one; it is called when the
            first array of that library arrives, so the library need not be imported earlier.

    Raises:
        ArgumentTypeError: ``backend`` is neither a Backend nor a function.
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


def check(library: Any, *, to_numpy: Callable[[Array], Any] | None = None) -> None:
    """Check everything that tomecore needs from an array library, by comparing it with NumPy on small arrays.

    ``tomecore.backends.REQUIRED`` lists the names of the namespace. Gradients and tracing are not checked.

    Args:
        library: a Backend, a namespace of the array API standard, or an array.
        to_numpy: converts an array of the library to NumPy. None: NumPy's own conversion, ``.numpy()`` or
            ``.get()``.

    Raises:
        UnsupportedLibraryError: something is missing or wrong; the message and ``faults`` list all of it.
        ArgumentTypeError: ``library`` is none of the three.
    """
    if isinstance(library, Backend):
        backend = library
    elif any(hasattr(library, name) for name in _NOT_OF_ARRAYS):
        backend = Backend(_name_of(library), library)
    else:
        backend = _look_up(library)
    faults = faults_of(backend, to_numpy)
    if faults:
        raise _unsupported(backend, faults)


def backend_of(*arrays: Array) -> Backend:
    """Return the backend that all ``arrays`` belong to; import it if this is its first array.

    Raises:
        ArgumentTypeError: an argument is not an array of a known or standard library, or the arrays
            come from different libraries.
        UnsupportedLibraryError: a library that is not built into tomecore lacks something. That is
            checked once, when its first array arrives; :func:`check` compares values too.
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
    backend = _look_up(array)
    if _root_of(array) not in _OWN and backend not in _complete:
        gaps = gaps_of(backend)
        if gaps:
            raise _unsupported(backend, gaps)
        _complete.add(backend)
    _by_type.update({type(array): backend})
    return backend


def _look_up(array: Array) -> Backend:
    root = _root_of(array)
    if root is None:
        return _from_standard(array)
    if not hasattr(array, "shape"):
        raise _not_an_array(array)
    backend = _load(_known[root])
    _known.update({root: backend})
    return backend


def _root_of(array: Array) -> str | None:
    """Return the known top-level module that defines the array's class or one of its bases."""
    roots = [cls.__module__.partition(".")[0] for cls in type(array).__mro__]
    return next((root for root in roots if root in _known), None)


def _load(entry: Backend | str | Callable[[], Backend]) -> Backend:
    if isinstance(entry, Backend):
        return entry
    if isinstance(entry, str):
        backend: Backend = importlib.import_module(entry).BACKEND
        return backend
    return entry()


def _from_standard(array: Array) -> Backend:
    """Return a backend of defaults for an object whose standard namespace array-api-compat finds."""
    import array_api_compat

    try:
        xp = array_api_compat.array_namespace(array)
    except TypeError:
        raise _not_an_array(array) from None
    known = (backend for backend in _by_type.values() if backend.xp is xp)
    return next(known, None) or Backend(_name_of(xp), xp)


def _name_of(xp: Any) -> str:
    name = str(getattr(xp, "__name__", type(xp).__name__))
    return name.removeprefix("array_api_compat.")


def _not_an_array(found: Any) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"expected an array (NumPy, PyTorch, Paddle, JAX or any array-API library); got "
        f"{type(found).__module__}.{type(found).__qualname__}. Convert it first, or teach "
        "tomecore the library with tomecore.backends.register."
    )


def _unsupported(backend: Backend, faults: list[str]) -> UnsupportedLibraryError:
    lines = "".join(f"\n  - {fault}" for fault in faults)
    return UnsupportedLibraryError(
        f"tomecore cannot use arrays of {backend.name}: its namespace or backend lacks, or does wrongly:"
        f"{lines}\nTeach tomecore a Backend that does this with tomecore.backends.register "
        "(docs/how-to/your-own-arrays.md), and test it with tomecore.backends.check.",
        faults,
    )
