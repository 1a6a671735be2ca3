"""A second implementation of the algorithm, as compiled kernels; README.md says why."""

from __future__ import annotations

from tomecore.backends.kernels.cpu.fused import prepare, unavailable

__all__ = ["prepare", "unavailable"]
