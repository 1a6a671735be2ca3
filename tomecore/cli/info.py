"""``tomecore info``: versions, devices and compiled kernels, for a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Mapping

from rich.markup import escape

import tomecore
from tomecore.backends.kernels import unavailable
from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._output import console, errors
from tomecore.cli._shared import Json, app
from tomecore.frameworks import RUNTIMES, Runtime

#: distributions whose versions matter, in the order in which they are shown
_PACKAGES = (
    *("numpy", "array-api-compat", "torch", "paddlepaddle", "paddlepaddle-gpu", "jax", "cupy"),
    *("numba", "triton", "timm", "torchvision", "transformers", "open_clip_torch", "paddleclas"),
    *("ppim", "paddlenlp", "onnx", "onnxruntime", "openvino"),
)
#: beginnings of the environment variables that change numbers or speed
_VARIABLES = ("TOMECORE_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NUMBA_", "FLAGS_")


@app.command()
def info(json_file: Json = None) -> None:
    """Show versions, devices and the state of the compiled kernels, for a bug report.

    A framework that is installed but cannot be imported is reported with its error.

    Example: tomecore info
    """
    check_file(json_file, "--json")
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    devices = {}
    for name, runtime in RUNTIMES.items():
        if importlib.util.find_spec(name) is not None:
            with errors.status(f"importing {name}"):
                devices[name] = _devices(runtime)
    numbers = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": versions,
        "devices": devices,
        "cpu_kernels": unavailable() or "compiled",
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
    }
    for label, text in [("tomecore", tomecore.__version__), *_lines(numbers)]:
        console.print(f"{label + ':':<17} {escape(text)}", highlight=False, soft_wrap=True)
    write_numbers(json_file, numbers)


def _lines(numbers: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return (label, text) of each line."""
    lines: list[tuple[str, str]] = []
    for key, value in numbers.items():
        if isinstance(value, dict):
            suffix = " devices" if key == "devices" else ""
            lines += [(f"{name}{suffix}", str(text)) for name, text in value.items()]
        else:
            lines.append((key.replace("_", " ").replace("cpu", "CPU"), str(value)))
    return lines


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(runtime: Runtime) -> str:
    """Return the names of the GPUs that a framework finds, "CPU" if there are none, or its error."""
    try:
        cuda = runtime.cuda
        names = [cuda.get_device_name(index) for index in range(cuda.device_count())]
    except Exception as error:  # noqa: BLE001  (a broken installation may raise anything; this shows it)
        return f"cannot be used: {type(error).__name__}: {error}"
    return ", ".join(names) or "CPU"
