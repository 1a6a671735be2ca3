"""The loops of ``loops.py``, compiled by Numba and kept, as functions of addresses and numbers."""

from __future__ import annotations

import ctypes
import inspect
import zlib
from types import FunctionType
from typing import Any

from llvmlite import binding
from numba import cfunc, types

from tomecore.backends.kernels.cpu import loops

__all__ = ["compiled"]

_INT = types.int64
_FLOATS, _INTS = types.CPointer(types.float32), types.CPointer(types.int64)


def compiled(element: str) -> tuple[Any, Any]:
    """The two kernels for activations of "float32" or "bfloat16"; both return 0 if memory ran out.

    The first makes units of keys: key, samples, tokens, heads, width of a head, strides of samples, tokens
    and heads, protected tokens; into even and odd units. The second does all the rest: see ``fused.py``.
    Compiling takes seconds, once: Numba keeps what it made beside ``loops.py``, or in the user's cache.
    """
    of = types.CPointer(types.uint16 if element == "bfloat16" else types.float32)
    plan = (_INTS, _INTS, _INTS)
    first = _INT(of, *[_INT] * 8, _FLOATS, _FLOATS)
    second = _INT(_FLOATS, of, *[_INT] * 8, _FLOATS, _INT, _INT, _INTS, of, _FLOATS, of, *plan)
    return _function(loops.units_at, first, element), _function(loops.merge_at, second, element)


def _function(function: Any, signature: Any, element: str) -> Any:
    try:
        made = cfunc(signature, cache=True)(_named(function, element))
    except (OSError, RuntimeError):  # no folder that can be written to, no space in it, no source
        made = cfunc(signature)(function)
    arguments = [ctypes.c_int64 if one is _INT else ctypes.c_void_p for one in signature.args]
    call = ctypes.CFUNCTYPE(ctypes.c_int64, *arguments)(made.address)  # type: ignore[arg-type]
    call.kept = made  # type: ignore[attr-defined]
    return call


def _named(function: Any, element: str) -> Any:
    """A copy under a name of its own for each source, dtype and processor, by which Numba names its files.

    It keeps all that it made of a function in files with numbers, and nothing locks them: two processes that
    begin at once could both take number 1, and one would later find the code of the other's dtype there.
    """
    what = inspect.getsource(loops), binding.get_host_cpu_name(), binding.get_host_cpu_features()
    mark = zlib.crc32(repr(what).encode())
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"{function.__name__}_{element}_{mark:08x}"
    return copy
