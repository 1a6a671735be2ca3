"""The models of these tests, and their common checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from adapters.cases import OWN, by_name
from vits.of_paddle import PLAIN

__all__ = ["CLAS", "DISTILLED", "OWN_PLAIN", "PPIM", "ROOT", "near"]

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
