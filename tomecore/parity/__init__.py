"""Do two frameworks agree? The same weights in both, and the same decisions and numbers out of both."""

from __future__ import annotations

from tomecore.parity._compare import LayerReport, Report, compare
from tomecore.parity._weights import convert_weights, load_arrays, transfer_weights

__all__ = [
    "LayerReport",
    "Report",
    "compare",
    "convert_weights",
    "load_arrays",
    "transfer_weights",
]
