"""Run an exported file in ONNX Runtime or OpenVINO, on a CPU."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tomecore._project import install_hint
from tomecore.errors import TomeError

__all__ = ["FORMATS", "check_installed", "cores", "run_file"]

#: format -> the ending of its files, and the packages that write and run them
FORMATS = {
    "onnx": (".onnx", ("onnx", "onnxruntime")),
    "openvino": (".xml", ("onnx", "onnxruntime", "openvino")),
}
#: framework -> the packages that its exporter needs
_EXPORTERS = {"torch": ("onnxscript",), "paddle": ("paddle2onnx",)}
#: package -> the command that installs it; the others come with an extra
_INSTALL = {
    "paddle2onnx": "pip install --no-deps paddle2onnx",
    "openvino": "pip install openvino",
}


def check_installed(form: str, framework: str) -> None:
    """Raise if a package that the export needs is missing, with the command that installs it."""
    for name in (*FORMATS[form][1], *_EXPORTERS[framework]):
        try:
            importlib.import_module(name)
        except ImportError as error:
            install = _INSTALL.get(name, install_hint("onnx"))
            raise TomeError(
                f"export needs {name}, which cannot be imported ({error}); install it with: {install}"
            ) from error


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_file(
    path: Path, threads: int, runtime: str | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs a file on images (n, C, H, W) float32, and returns its first output.

    Args:
        path: an ``.onnx`` file, or an ``.xml`` file of OpenVINO.
        threads: threads on the CPU.
        runtime: "onnx" (ONNX Runtime) or "openvino", which reads both kinds; None: by the ending.
    """
    runtime = runtime or ("openvino" if path.suffix == ".xml" else "onnx")
    return {"onnx": _run_onnx, "openvino": _run_openvino}[runtime](path, threads)


def _run_onnx(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait actively after a run would slow down the next run of another file.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: images})[0])

    return run


def _run_openvino(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    openvino: Any = importlib.import_module("openvino")
    # On CPUs with bfloat16, OpenVINO would round to it.
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)

    def run(images: np.ndarray) -> np.ndarray:
        return np.array(compiled(images)[0])

    return run
