"""Check whether two models agree: load the same weights, compare decisions and numbers.

    parity.transfer_weights(torch_model, paddle_model)
    parity.assert_parity(torch_model, paddle_model, images, r=8)   # says where they diverge, and why

``tomecore parity`` does the same on the command line.
"""

from __future__ import annotations

from tomecore.models.convert import convert_weights, load_arrays, transfer_weights
from tomecore.parity._compare import compare
from tomecore.parity._diagnose import Diagnosis, assert_parity, diagnose
from tomecore.parity._flip import Flip
from tomecore.parity._report import BlockReport, Difference, LayerReport, Report

__all__ = [
    "BlockReport",
    "Diagnosis",
    "Difference",
    "Flip",
    "LayerReport",
    "Report",
    "assert_parity",
    "compare",
    "convert_weights",
    "diagnose",
    "load_arrays",
    "transfer_weights",
]
