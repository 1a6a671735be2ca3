"""The environment that the numbers of a benchmark depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import tomecore
from tomecore.backends.kernels import unavailable

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores, threads, versions, and compiled kernels."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "the framework's choice"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "tomecore": tomecore.__version__,
        "kernels": unavailable() or "compiled",
    }
    for name in (
        "numpy",
        "torch",
        "timm",
        "torchvision",
        "transformers",
        "paddlepaddle",
        "paddlepaddle-gpu",
        "numba",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "torch" in found:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
