"""The models these tests run on, and what they all ask of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from adapters.cases import OWN, by_name
from vits.of_paddle import PLAIN

__all__ = ["CLAS", "DISTILLED", "OWN_PLAIN", "PPIM", "ROOT", "benchmark", "near"]

ROOT = Path(__file__).parents[3]

OWN_PLAIN = by_name(OWN)["paddle-plain"]
CLAS = by_name(PLAIN)["paddleclas-plain"]
DISTILLED = by_name(PLAIN)["paddleclas-distilled"]
PPIM = by_name(PLAIN)["ppim-plain"]


def near(got: Any, expected: Any, limit: float = 1e-12) -> None:
    """Arrays, or arrays by name, equal up to ``limit`` of the largest expected number."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            near(got[name], expected[name], limit)
        return
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit * scale)


def benchmark(name: str) -> ModuleType:
    """A script in ``benchmarks/``, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
