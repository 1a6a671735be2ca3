"""The place where a timed forward pass runs: on a device, in a dtype, compiled or not."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import RUNTIMES, framework_of

__all__ = ["Place", "peak_bytes", "place_of"]

#: mode of a forward pass, besides eager -> the framework that has it
_MODES = {"compile": "torch", "cudagraphs": "torch", "to_static": "paddle"}


class Place:
    """A device of a framework, and a dtype to compute in.

    Args:
        framework: "torch" or "paddle".
        device: as the framework spells it: "cpu", "cuda:0", "gpu:0".
        dtype: "float32", "bfloat16" or "float16".
    """

    def __init__(self, framework: str, device: str, dtype: str) -> None:
        self.runtime = RUNTIMES[framework]
        self.device = device
        self.dtype = dtype
        self.on_gpu = not device.startswith("cpu")

    def put(self, model: Any) -> Any:
        """Move the model to this device and dtype, and return it."""
        return self.runtime.move(model, self.device, self.dtype)

    def images(self, batch: int, shape: tuple[int, int, int]) -> Any:
        """Return random images (batch, C, H, W) on this device."""
        values = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
        return self.runtime.tensor(values, self.device, self.dtype)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            self.runtime.cuda.synchronize()

    def no_grad(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context manager that disables gradients at the lowest cost in this framework."""
        context: contextlib.AbstractContextManager[Any] = self.runtime.fastest()
        return context

    def compile_model(self, model: Any, mode: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        """Return the model as a function, compiled unless ``mode`` is "eager".

        Raises:
            ArgumentValueError: the framework or the device does not have this mode.
        """
        if mode == "eager":
            return lambda x: model(x)
        library = self.runtime.library
        if _MODES[mode] != self.runtime.name:
            raise ArgumentValueError(
                f"mode {mode!r} is for {_MODES[mode]}; the model is in {self.runtime.name}"
            )
        if mode == "cudagraphs" and not self.on_gpu:
            raise ArgumentValueError("CUDA graphs need a GPU; give --device cuda")
        run: Callable[[Any], Any]
        if mode == "to_static":
            spec = [library.static.InputSpec([None, *shape[1:]], self.dtype)]
            run = library.jit.to_static(model, full_graph=True, input_spec=spec)
        else:
            how = "reduce-overhead" if mode == "cudagraphs" else None
            run = library.compile(model, dynamic=False, mode=how)
        return run


def place_of(model: Any, device: str, dtype: str) -> Place:
    """Return the place for a model of any framework.

    Raises:
        ArgumentValueError: the device is not available, or it cannot compute in this dtype.
    """
    place = Place(framework_of(model), device, dtype)
    runtime = place.runtime
    names_gpu = device.startswith(runtime.gpu)
    if names_gpu and not runtime.cuda.device_count():
        raise ArgumentValueError(
            f"`device` is {device!r}, but {runtime.name} finds no GPU here; use cpu, or install a build of "
            f"{runtime.name} for GPUs"
        )
    if device != "cpu" and not names_gpu:
        raise ArgumentValueError(
            f"{runtime.name} has no device {device!r} here; its devices are called {runtime.devices}"
        )
    if runtime.name == "paddle" and not place.on_gpu and dtype != "float32":
        raise ArgumentValueError(f"Paddle has no {dtype} kernels on a CPU; use float32, or a GPU")
    return place


def peak_bytes(place: Place, call: Callable[[], Any]) -> int | None:
    """Return the most memory that one call takes, beyond what was in use before it; None if unknown."""
    if place.on_gpu:
        return _peak_on_gpu(place, call)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system and counts again
        before = _status(status, "VmRSS")
        reset.write_text("5")  # Linux: reset the high-water mark
        call()
        return max(0, _status(status, "VmHWM") - before)
    except (OSError, AttributeError, StopIteration):  # not Linux, or not its usual C library
        return None


def _peak_on_gpu(place: Place, call: Callable[[], Any]) -> int:
    cuda = place.runtime.cuda
    place.wait()
    before = cuda.memory_allocated()
    getattr(cuda, place.runtime.reset_peak)()
    call()
    place.wait()
    return int(cuda.max_memory_allocated() - before)


def _status(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
