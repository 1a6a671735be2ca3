"""The check of an array library: tomecore's operations on arrays, compared with NumPy on small ones.

The algorithms are in packages that import this one, so they register their trials with :func:`add_trial`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tomecore.backends.required import (
    ARRAYS,
    OPERATIONS,
    REQUIRED,
    attempt,
    evaluate,
    gaps_of,
    library_inputs,
    overrides,
    required_calls,
    to_library,
)
from tomecore.backends.standard import Array, Backend

__all__ = ["Trial", "add_trial", "faults_of"]

#: ``(backend, keys (B, N, D), x (B, N, C), sizes (B, N)) -> arrays``: one algorithm
Trial = Callable[[Backend, Array, Array, Array], tuple[Array, ...]]
_trials: dict[str, Trial] = {}

#: functions that choose their own integer dtype if none is passed
_OWN_INTEGER = ("arange", "argmax", "argsort", "asarray")
#: beginning of a call -> the likely cause if its values are wrong
_HINTS = {
    "argsort": "equal values must keep their order, as with stable=True",
    "argmax": "ties go to the first value",
    "scatter_add(base, repeated": "updates of one row must accumulate",
    "scatter_max(base, repeated": "the largest update of one row counts",
    "accumulate": "updates of one row must accumulate",
}


def add_trial(name: str, trial: Trial) -> None:
    """Add an algorithm to the check, which runs it on the library and on NumPy."""
    _trials[name] = trial


def faults_of(backend: Backend, to_numpy: Callable[[Array], Any] | None = None) -> list[str]:
    """Return everything that is missing or wrong, one line each; an empty list if the library conforms."""
    gaps = gaps_of(backend)
    inputs, _ = library_inputs(backend)
    if not inputs:
        return gaps
    check = _Check(backend, to_numpy or any_to_numpy, inputs, bool(gaps))
    check.functions()
    check.methods()
    if not gaps and not check.faults:  # or the algorithms would repeat these faults
        check.algorithms()
    missing = [f"has no attribute '{name}'" for name in REQUIRED if not hasattr(backend.xp, name)]
    more = [fault for fault in check.faults if not fault.endswith(tuple(missing))]
    return list(dict.fromkeys(gaps + more))  # a method that meets a gap would only repeat it


def any_to_numpy(array: Array) -> np.ndarray:
    """Convert an array of any library that NumPy or its own methods can convert."""
    for convert in (np.asarray, lambda x: x.numpy(), lambda x: x.get(), np.from_dlpack):
        try:
            found = np.array(convert(array))
        except Exception:  # noqa: BLE001 (a library may raise anything; the next way is tried)
            continue
        if found.dtype != object:
            return found
    raise TypeError("no way to NumPy is known: pass `to_numpy=` to tomecore.backends.check")


class _Check:
    """One run of the check: the library, and the faults found so far."""

    def __init__(
        self,
        backend: Backend,
        to_numpy: Callable[[Array], Any],
        inputs: dict[str, Any],
        has_gaps: bool,
    ) -> None:
        self.backend = backend
        self.to_numpy = to_numpy
        self.inputs = inputs
        self.has_gaps = has_gaps
        self.faults: list[str] = []
        #: NumPy dtype -> dtype that the library gives an array created from it
        self.dtypes = {ARRAYS[name].dtype: inputs[name].dtype for name in ARRAYS}
        float64 = getattr(backend.xp, "float64", None)
        if float64 is not None and to_library(backend, np.ones(1)).dtype == float64:
            self.dtypes[np.dtype(np.float64)] = float64

    def run(
        self,
        what: str,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        expected: np.ndarray,
        overwrites: bool = False,
        any_integer: bool = False,
    ) -> None:
        """Compare the result of a method, and check that it does not change its arguments.

        Args:
            what: the call, for messages; it begins with the name of the method.
            function: the method.
            arguments: NumPy arrays are converted; other arguments are passed on.
            expected: the correct result.
            overwrites: whether the method may write to its first argument.
            any_integer: whether the result may have a different signed integer dtype than ``expected``.
        """
        if self.has_gaps and not overrides(self.backend, what.partition("(")[0]):
            return  # a default would only repeat these gaps
        given = [
            to_library(self.backend, one) if isinstance(one, np.ndarray) else one
            for one in arguments
        ]
        found, faults = attempt(what, function, *given)
        self.faults += faults
        if faults:
            return
        self.compare(what, found, expected, any_integer)
        for array, before in list(zip(given, arguments, strict=True))[int(overwrites) :]:
            if isinstance(before, np.ndarray):
                self.changes(what, array, before)

    def changes(self, what: str, array: Array, before: np.ndarray) -> bool:
        """Record a fault if a call has written to an argument; return whether it has."""
        values, faults = attempt("to_numpy(array)", self.to_numpy, array)
        changed = not faults and not np.array_equal(values, before)
        if changed:
            self.faults.append(f"{what} changes an argument; it must return a new array")
        return changed

    def compare(self, what: str, found: Array, expected: Any, any_integer: bool = False) -> None:
        """Record a fault if the dtype, shape or values of a result differ from NumPy's."""
        if isinstance(expected, bool):
            if bool(found) != expected:
                self.faults.append(f"{what} returns {found}; it must be {expected}")
            return
        if not hasattr(found, "dtype"):
            self.faults.append(f"{what} returns {type(found).__name__}; it must be an array")
            return
        values, faults = attempt("to_numpy(array)", self.to_numpy, found)
        self.faults += faults
        if faults:
            return
        values = np.asarray(values)
        if any_integer and expected.dtype.kind == "i":
            if values.dtype.kind != "i":
                wanted = "a signed integer"  # plans hold indices, and users subtract them
                self.faults.append(f"{what} returns dtype {found.dtype}; it must be {wanted}")
        elif found.dtype != self.dtypes[expected.dtype]:
            wanted = self.dtypes[expected.dtype]
            self.faults.append(f"{what} returns dtype {found.dtype}; it must be {wanted}")
        tolerance = {"float32": 1e-5, "float64": 1e-11}.get(str(expected.dtype), 0)
        if values.shape != expected.shape:
            self.faults.append(f"{what} returns shape {values.shape}; it must be {expected.shape}")
        elif not np.allclose(values, expected, tolerance, tolerance):
            hints = [hint for call, hint in _HINTS.items() if what.startswith(call)]
            self.faults.append(": ".join([f"{what} returns other values than NumPy", *hints[:1]]))

    def functions(self) -> None:
        """Compare the functions of the namespace and the operations of arrays."""
        import array_api_compat.numpy as numpy_namespace

        on_numpy = {**ARRAYS, "device": "cpu", "numpy_array": self.inputs["numpy_array"]}
        for source in (*required_calls(self.backend), *OPERATIONS):
            found, faults = attempt(source, evaluate, source, self.backend.xp, self.inputs)
            if faults:
                continue  # the gaps include it already
            any_integer = source.startswith(_OWN_INTEGER) and "index.dtype" not in source
            expected = evaluate(source, numpy_namespace, on_numpy)
            self.compare(source, found, expected, any_integer)
            changes = [
                self.changes(source, self.inputs[name], before) for name, before in ARRAYS.items()
            ]
            if any(changes):
                self.inputs, _ = library_inputs(self.backend)

    def methods(self) -> None:
        """Compare the methods of the backend with equivalent NumPy code."""
        for dtype in self.dtypes:
            if dtype.kind != "b":
                self.scatters(dtype)
        backend, index = self.backend, ARRAYS["index"]
        x, y, ties = ARRAYS["x"], ARRAYS["y"], ARRAYS["ties"]
        self.run("detach(x)", backend.detach, (x,), x)
        self.run("batch_index(index)", backend.batch_index, (index,), np.asarray([[0], [1]]))
        expected = np.asarray([[1, 4, 7]] * 2)
        arguments: tuple[Any, ...] = (index, 1, 8, 3)
        self.run("batched_arange(index, 1, 8, 3)", backend.batched_arange, arguments, expected)
        expected = np.concatenate([index[0], index[1] + 5])
        self.run("flat_rows(index, 5)", backend.flat_rows, (index, 5), expected)
        self.run("every_second(x, 1)", backend.every_second, (x, 1), x[:, 1::2])
        for place, what in enumerate(("even", "odd")):
            self.run(
                f"even_and_odd(x, 0, 1): {what}",
                lambda x, place=place: backend.even_and_odd(x, 0, 1)[place],
                (x,),
                x[:, place::2],
            )
        self.run(
            "take_range(index, 3, 11, 2)", backend.take_range, (index, 3, 11, 2), 3 + 2 * index
        )
        keys = x.reshape(x.shape[0], -1, 2, 2)
        call = "sum_in(keys, 2, keys.dtype)"
        self.run(call, lambda keys: backend.sum_in(keys, 2, keys.dtype), (keys,), keys.sum(2))
        self.run("products(x, y)", backend.products, (x, y), np.einsum("bsd,btd->bst", x, y))
        expected = np.linalg.norm(x, axis=2, keepdims=True)
        self.run("norm(x)", backend.norm, (x,), expected)
        expected = np.zeros_like(index)
        np.put_along_axis(expected, index, np.arange(8).reshape(2, 4), axis=1)
        arguments = (index, np.arange(8).reshape(2, 4))
        self.run("permute(index, values)", backend.permute, arguments, expected)
        self.run("max_rows(x)", lambda x: backend.max_rows(x)[0], (ties,), ties.max(2))
        rows = np.asarray([[2, 0], [1, 1]])
        expected = np.take_along_axis(ties.argmax(2), rows, axis=1)
        for what, given in (("None", lambda x: None), ("where", lambda x: backend.max_rows(x)[1])):
            self.run(
                f"argmax_rows(x, {what}, rows)",
                lambda x, rows, given=given: backend.argmax_rows(x, given(x), rows),
                (ties, rows),
                expected,
                any_integer=True,
            )
        self.host_values()

    def host_values(self) -> None:
        """Compare the values that the backend reads on the host; reading none is right, too."""
        for what, given in (("index", self.inputs["index"]), ("numpy_array", ARRAYS["index"])):
            call = f"host_values({what})"
            found, faults = attempt(call, self.backend.host_values, given)
            self.faults += faults
            if not faults and found is not None and not np.array_equal(found, ARRAYS["index"]):
                self.faults.append(f"{call} returns other values than NumPy")

    def scatters(self, dtype: np.dtype) -> None:
        """Compare the scatters of one dtype, with distinct, repeated and empty indices."""
        backend, generator = self.backend, np.random.default_rng(1)
        for kind, index in (
            ("distinct", np.asarray([[0, 3], [2, 1]])),
            ("repeated", np.asarray([[1, 1, 1, 3, 1], [0, 0, 2, 2, 0]])),
            ("empty", np.zeros((2, 0), dtype=np.int64)),
        ):
            base = (10 * generator.standard_normal((2, 4, 3))).astype(dtype)
            updates = (10 * generator.standard_normal((*index.shape, 3))).astype(dtype)
            arguments, indices = (base, index, updates), f"{kind} indices"
            added = _scatter(np.add, *arguments)
            what = f"scatter_add(base, {indices}, updates) of {dtype}"
            self.run(what, backend.scatter_add, arguments, added)
            what = f"scatter_max(base, {indices}, updates) of {dtype}"
            expected = _scatter(np.maximum, *arguments)
            self.run(what, backend.scatter_max, arguments, expected)
            if backend.accumulate_2d is not None:
                what = f"accumulate_2d(base, {indices}, updates) of {dtype}"
                arguments = (base[:, :, 0], index, updates[:, :, 0])
                self.run(what, backend.accumulate_2d, arguments, added[:, :, 0], overwrites=True)
            flat = base.reshape(-1, 3)
            if backend.accumulate is None or not backend.accumulates(to_library(backend, flat)):
                continue
            rows = (index + np.asarray([[0], [4]])).reshape(-1)
            what = f"accumulate(base, {kind} rows, updates) of {dtype}"
            for width in (slice(None), 0):
                arguments = (flat[:, width], rows, updates.reshape(-1, 3)[:, width])
                expected = added.reshape(-1, 3)[:, width]
                self.run(what, backend.accumulate, arguments, expected, overwrites=True)

    def algorithms(self) -> None:
        """Compare every algorithm with its own result on NumPy, with the defaults of a backend."""
        import array_api_compat.numpy as numpy_namespace

        reference = Backend("numpy", numpy_namespace)
        generator = np.random.default_rng(2)
        keys, x = generator.standard_normal((2, 2, 11, 4)).astype(np.float32)
        sizes = generator.integers(1, 4, (2, 11)).astype(np.float32)
        for name, trial in _trials.items():
            arrays = [to_library(self.backend, one) for one in (keys, x, sizes)]
            found, faults = attempt(name, trial, self.backend, *arrays)
            self.faults += faults
            if faults:
                continue
            for one, expected in zip(found, trial(reference, keys, x, sizes), strict=True):
                self.compare(name, one, expected, any_integer=True)
            for array, before in zip(arrays, (keys, x, sizes), strict=True):
                self.changes(name, array, before)


def _scatter(
    ufunc: np.ufunc, base: np.ndarray, index: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    found: np.ndarray = base.copy()
    for sample in range(len(base)):
        ufunc.at(found[sample], index[sample], updates[sample])
    return found
