"""How each framework runs a forward pass to be timed: on a device, in a dtype, compiled or not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of

__all__ = ["MODES", "Place", "peak_bytes", "place_of"]

#: how a forward pass runs -> the framework that has it; None: both
MODES = {"eager": None, "compile": "torch", "cudagraphs": "torch", "to_static": "paddle"}


class Place:
    """A framework on a device.

    Args:
        framework: "torch" or "paddle".
        device: as the framework spells it: "cpu", "cuda:0", "gpu:0".
        dtype: "float32", "bfloat16" or "float16".
    """

    def __init__(self, framework: str, device: str, dtype: str) -> None:
        self.framework = framework
        self.device = device
        self.dtype = dtype
        self.on_gpu = not device.startswith("cpu")

    def put(self, model: Any) -> Any:
        """The model on this device, in this dtype."""
        if self.framework == "torch":
            import torch

            return model.to(device=self.device, dtype=getattr(torch, self.dtype))
        return model.to(device=self.device, dtype=self.dtype)

    def images(self, batch: int, shape: tuple[int, int, int]) -> Any:
        """Random images (batch, C, H, W) there."""
        values = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
        if self.framework == "torch":
            import torch

            return torch.from_numpy(values).to(self.device, getattr(torch, self.dtype))
        import paddle

        dtype: Any = self.dtype
        return paddle.to_tensor(values).to(self.device, dtype)

    def wait(self) -> None:
        """Until the device has done what was asked."""
        if not self.on_gpu:
            return
        if self.framework == "torch":
            import torch

            torch.cuda.synchronize()
        else:
            import paddle

            paddle.device.synchronize()

    def compiled(self, model: Any, mode: str, shape: tuple[int, ...]) -> Callable[[Any], Any]:
        """The model as a call in one of :data:`MODES`."""
        if mode == "eager":
            return lambda x: model(x)
        if MODES[mode] != self.framework:
            raise ArgumentValueError(
                f"mode {mode!r} is {MODES[mode]}'s; the model is {self.framework}'s"
            )
        if mode == "to_static":
            import paddle

            dtype: Any = self.dtype
            spec = [paddle.static.InputSpec([None, *shape[1:]], dtype)]
            traced: Callable[[Any], Any] = paddle.jit.to_static(
                model, full_graph=True, input_spec=spec
            )
            return traced
        import torch

        if mode == "cudagraphs" and not self.on_gpu:
            raise ArgumentValueError("CUDA graphs need a GPU; give --device cuda")
        how = "reduce-overhead" if mode == "cudagraphs" else None
        made: Callable[[Any], Any] = torch.compile(model, dynamic=False, mode=how)
        return made

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients."""
        if self.framework == "torch":
            import torch

            with torch.inference_mode():
                yield
        else:
            import paddle

            with paddle.no_grad():
                yield

    def forget_gradients(self, model: Any) -> None:
        if self.framework == "torch":
            model.zero_grad(set_to_none=True)
        else:
            model.clear_gradients(set_to_zero=False)


def place_of(model: Any, device: str, dtype: str) -> Place:
    """The place of a model of any framework.

    Raises:
        ArgumentValueError: a device that is not there, or a dtype that it cannot compute in.
    """
    framework = framework_of(model)
    if framework == "torch":
        import torch

        there = device == "cpu" or (device.startswith("cuda") and torch.cuda.is_available())
    else:
        import paddle

        there = device == "cpu" or (
            device.startswith("gpu") and paddle.device.is_compiled_with_cuda()
        )
        if there and device == "cpu" and dtype != "float32":
            raise ArgumentValueError(
                f"Paddle has no {dtype} kernels on a CPU; use float32, or a GPU"
            )
    if not there:
        names = {"torch": "cpu, cuda, cuda:1 ...", "paddle": "cpu, gpu, gpu:1 ..."}[framework]
        raise ArgumentValueError(
            f"{framework} has no device {device!r} here; its devices are called {names}"
        )
    return Place(framework, device, dtype)


def peak_bytes(place: Place, call: Callable[[], Any]) -> int | None:
    """Memory one call takes at most, beyond what was in use before it; None where that is not known."""
    if place.on_gpu:
        return _peak_on_gpu(place, call)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, and counts again
        before = _status(status, "VmRSS")
        reset.write_text("5")  # Linux: the high-water mark begins anew
        call()
        return max(0, _status(status, "VmHWM") - before)
    except (OSError, AttributeError, StopIteration):  # not Linux, or not its usual library
        return None


def _peak_on_gpu(place: Place, call: Callable[[], Any]) -> int:
    cuda: Any = importlib.import_module(
        "torch.cuda" if place.framework == "torch" else "paddle.device.cuda"
    )
    place.wait()
    before = cuda.memory_allocated()
    if place.framework == "torch":
        cuda.reset_peak_memory_stats()
    else:
        cuda.reset_max_memory_allocated()
    call()
    place.wait()
    return int(cuda.max_memory_allocated() - before)


def _status(path: Path, name: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
