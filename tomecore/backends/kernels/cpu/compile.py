"""Compile the loops of ``loops.py`` with Numba, as functions of addresses and numbers."""

from __future__ import annotations

import ctypes
import inspect
import zlib
from types import FunctionType
from typing import Any

from llvmlite import binding
from numba import cfunc, types

from tomecore.backends.kernels.cpu import loops

__all__ = ["compile_kernels"]

_INT = types.int64
_FLOATS, _INTS = types.CPointer(types.float32), types.CPointer(types.int64)


def compile_kernels(element: str) -> tuple[Any, Any]:
    """Return the two kernels for activations of "float32" or "bfloat16"; both return 0 if memory ran out.

    The first normalizes keys. Its arguments are key, samples, tokens, heads, width of a head, strides of
    samples, tokens and heads, protected tokens, and the even and odd units that it fills in. The second does
    the rest: see ``fused.py``. Compiling takes seconds, once: Numba stores its results next to ``loops.py``,
    or in the user's cache.
    """
    of = types.CPointer(types.uint16 if element == "bfloat16" else types.float32)
    plan = (_INTS, _INTS, _INTS)
    first = _INT(of, *[_INT] * 8, _FLOATS, _FLOATS)
    second = _INT(_FLOATS, of, *[_INT] * 8, _FLOATS, _INT, _INT, _INTS, of, _FLOATS, of, *plan)
    return _function(loops.units_at, first, element), _function(loops.merge_at, second, element)


def _function(function: Any, signature: Any, element: str) -> Any:
    try:
        made = cfunc(signature, cache=True)(_rename(function, element))
    except (OSError, RuntimeError):  # no writable folder, no space in it, no source
        made = cfunc(signature)(function)
    arguments = [ctypes.c_int64 if one is _INT else ctypes.c_void_p for one in signature.args]
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *arguments)(made.address)  # type: ignore[arg-type]
    call.kept = made  # type: ignore[attr-defined]
    return call


def _rename(function: Any, element: str) -> Any:
    """Return a copy whose name differs for each source, dtype and processor; Numba names its files by it.

    Numba stores all versions of a function in numbered files without a lock: two processes that start at
    once could both take number 1, and one would later load the code for the other's dtype.
    """
    what = inspect.getsource(loops), binding.get_host_cpu_name(), binding.get_host_cpu_features()
    mark = zlib.crc32(repr(what).encode())
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{element}_{mark:08x}"
    return copy
