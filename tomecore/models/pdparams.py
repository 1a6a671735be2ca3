"""Read ``.pdparams`` files without running code in them.

Paddle writes state dicts as pickles, and unpickling can run any code that the file names. This reader
allows only the names that numpy arrays need and refuses every other name, so a downloaded file is only
data. It does not need Paddle, and returns numpy arrays.
"""

from __future__ import annotations

import codecs
import os
import pickle
from typing import Any

import numpy as np

__all__ = ["read_pdparams"]

_NAMES = "StructuredToParameterName@@"  # Paddle's internal parameter names; nothing needs them
_SPLIT = "UnpackBigParamInfor@@"  # how arrays above 1 GiB were cut for pickle protocols 2 and 3
_BROKEN = (AttributeError, EOFError, LookupError, MemoryError, OverflowError, TypeError)


def read_pdparams(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a state dict written by ``paddle.save``.

    Args:
        path: The file, of any pickle protocol Paddle writes (2 to 4).

    Returns:
        Name to array. bfloat16, which Paddle stores as the upper half of a float32 in uint16,
        comes back as float32.

    Raises:
        ValueError: The file needs more than arrays and plain containers, or holds no state
            dict.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            state = _ArrayUnpickler(file, encoding="latin1").load()  # latin1: Python 2 wrote some
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not a dict of name -> array")
        state.pop(_NAMES, None)
        for name, cut in state.pop(_SPLIT, {}).items():
            parts = [state.pop(part) for part in cut["slices"]]
            state[name] = np.concatenate(parts).reshape(cut["OriginShape"])
    except (pickle.UnpicklingError, ValueError, *_BROKEN) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return {name: _array(path, name, value) for name, value in state.items()}


def _array(path: str, name: Any, value: Any) -> np.ndarray:
    if isinstance(value, tuple) and len(value) == 2:  # a tensor outside a state dict: (name, array)
        value = value[1]
    if (
        not isinstance(name, str)
        or not isinstance(value, np.ndarray)
        or value.dtype.kind not in "biuf"
    ):
        raise ValueError(
            f"{path}: entry {name!r} is a {type(value).__name__}, not an array of numbers; "
            "give the file of a model's state dict"
        )
    if value.dtype == np.uint16:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes that protocol 2 stores as latin-1 text, as ``codecs.encode`` does."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return codecs.encode(text, "latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that finds numpy's array constructors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # numpy 1
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
            ("builtins", "tuple"): tuple,
            ("__builtin__", "tuple"): tuple,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(
                f"refused to load {module}.{name}: a weights file holds only numpy arrays in plain "
                "containers, and this one could run code. Convert it where you trust it: "
                "safetensors.numpy.save_file"
            )
        return allowed[module, name]


def _reconstruct(subtype: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Return an empty array for the pickle to fill, as numpy does; only a plain array is allowed."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError(f"an array of type {subtype!r}")
    array: np.ndarray = np.ndarray.__new__(np.ndarray, shape, "b")
    return array
