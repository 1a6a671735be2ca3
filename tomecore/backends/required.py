"""The only list of what tomecore uses of an array library, and the search for gaps in a library.

``tests/backends/test_check.py`` compares :data:`REQUIRED` with what the algorithms use of a namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tomecore.backends.arrays import Array
from tomecore.backends.standard import Backend

__all__ = [
    "ARRAYS",
    "OPERATIONS",
    "REQUIRED",
    "attempt",
    "evaluate",
    "gaps_of",
    "library_inputs",
    "required_calls",
]

#: How tomecore calls the functions of a namespace, as source, so that messages show the exact call.
_CALLS = (
    "arange(1, 8, 3, dtype=index.dtype, device=device)",
    "arange(5, dtype=index.dtype, device=device)",
    "arange(1, 8, 3, dtype=None, device=device)",
    "arange(1, 8, 3, device=device)",
    "argmax(ties, axis=2)",
    "argsort(scores, axis=1, descending=True, stable=True)",
    "argsort(index, axis=1)",
    "asarray(numpy_array, device=device)",
    "astype(index, x.dtype)",
    "astype(index, x.dtype, copy=False)",
    "clip(x, min=0.25)",
    "clip(x, min=-0.5, max=0.5)",
    "concat([x, y], axis=1)",
    "exp(x)",
    "isdtype(x.dtype, 'real floating')",
    "isdtype(index.dtype, 'real floating')",
    "isdtype(index.dtype, 'integral')",
    "isdtype(mask.dtype, 'integral')",
    "isdtype(mask.dtype, 'bool')",
    "matmul(x, square)",
    "max(x, axis=2)",
    "ones_like(x)",
    "permute_dims(x, (0, 2, 1))",
    "reshape(x, (-1, 4))",
    "sort(index, axis=1)",
    "sqrt(positive)",
    "sum(x, axis=-1, keepdims=True)",
    "sum(x, axis=2)",
    "take(x, rows, axis=0)",
    "take(x, rows, axis=1)",
    "take_along_axis(index, places, axis=1)",
    "where(mask, x, y)",
    "where(mask[:, :, :1], x, y)",
    "zeros_like(x)",
)

#: operations on arrays themselves, as source
OPERATIONS = (
    "x[:, :1, 0]",
    "x[:, :, None, :]",
    "index[:, :0]",
    "x + y",
    "0.5 * x - y",
    "1 - x",
    "x / positive",
    "x > 0",
    "index + 3 * index",
    "index[:, None, :] == index[:, :, None]",
)


def _name(call: str) -> str:
    return call.partition("(")[0]


#: Every name that tomecore uses of a namespace, in alphabetical order.
REQUIRED: tuple[str, ...] = tuple(sorted({"float32", "float64", *map(_name, _CALLS)}))

#: names that only the defaults of these methods of a backend use
_ONLY_IN = {
    "matmul": ("products", "scatter_add"),
    "max": ("max_rows", "scatter_max"),
}

_generator = np.random.default_rng(0)
_x, _y = _generator.standard_normal((2, 2, 3, 4)).astype(np.float32)
#: the arguments of the calls, in float32, int64 and bool; the batch is 2
ARRAYS: dict[str, np.ndarray] = {
    "x": _x,
    "y": _y,
    "positive": np.abs(_x) + 1,
    "square": _generator.standard_normal((2, 4, 4)).astype(np.float32),
    "ties": _generator.integers(0, 3, (2, 3, 8)).astype(np.float32),
    "scores": _generator.integers(0, 3, (2, 600)).astype(np.float32),
    "index": np.asarray([[2, 0, 3, 1], [1, 3, 2, 0]]),
    "places": np.asarray([[2, 0, 1], [0, 0, 2]]),
    "rows": np.asarray([1, 0, 1]),
    "mask": _x > 0,
}


def required_names(backend: Backend) -> list[str]:
    """Return the names that a backend needs from its namespace and does not replace by its own methods."""
    return [
        name
        for name in REQUIRED
        if name not in _ONLY_IN or not all(overrides(backend, one) for one in _ONLY_IN[name])
    ]


def required_calls(backend: Backend) -> list[str]:
    """Return the calls of the names that a backend needs and its namespace has, as source."""
    names = {name for name in required_names(backend) if hasattr(backend.xp, name)}
    return [call for call in _CALLS if _name(call) in names]


def overrides(backend: Backend, method: str) -> bool:
    """Whether a method of a backend is not the default."""
    return method in vars(backend) or getattr(type(backend), method) is not getattr(Backend, method)


def evaluate(source: str, xp: Any, inputs: dict[str, Any]) -> Any:
    """Evaluate a call or an operation of the tables above."""
    names = {name: getattr(xp, name) for name in REQUIRED if hasattr(xp, name)}
    return eval(source, {"__builtins__": {}}, {**names, **inputs})


def attempt(what: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[str]]:
    """Call a function; return its result, and what it raised as a list of one fault."""
    try:
        return function(*arguments), []
    except Exception as error:  # noqa: BLE001 (a library may raise anything)
        reason = (str(error).strip().splitlines() or ["no message"])[0][:120].rstrip(": ")
        return None, [f"{what} raises {type(error).__name__}: {reason}"]


def library_inputs(backend: Backend) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of the calls as arrays of the library, and the faults in converting them."""
    found, faults = attempt(
        "making an array of a NumPy array",
        lambda: {k: to_library(backend, a) for k, a in ARRAYS.items()},
    )
    if faults:
        return {}, faults
    device, faults = attempt("device(x)", backend.device, found["x"])
    advice = (
        "; give the backend a method `device` that returns what `arange(device=...)` takes, or None"
    )
    return {**found, "device": device, "numpy_array": np.asarray([3, 1, 2])}, [
        fault + advice for fault in faults
    ]


def to_library(backend: Backend, values: np.ndarray) -> Array:
    """Return an array of the library, converted with ``asarray`` or ``array``."""
    for name in ("asarray", "array"):
        function = getattr(backend.xp, name, None)
        if function is not None:
            return function(np.array(values))  # a copy, in case the library writes to it
    raise TypeError("the namespace has neither `asarray` nor `array`")


def gaps_of(backend: Backend) -> list[str]:
    """Return what a library lacks, one line each: names, and calls that raise. It compares no values."""
    xp = backend.xp
    gaps = [f"`{name}` is missing" for name in required_names(backend) if not hasattr(xp, name)]
    inputs, faults = library_inputs(backend)
    if not inputs:
        return gaps + faults
    for source in (*required_calls(backend), *OPERATIONS):
        gaps += attempt(source, evaluate, source, xp, inputs)[1]
    return gaps + faults
