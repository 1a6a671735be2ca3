"""Names of PyTorch's own classes that families allow as children of a block."""

from __future__ import annotations

__all__ = ["DROPOUT", "IDENTITY", "LAYER_NORM", "NORMS"]

IDENTITY = ("torch.nn.modules.linear.Identity",)
LAYER_NORM = ("torch.nn.modules.normalization.LayerNorm",)
DROPOUT = ("torch.nn.modules.dropout.Dropout",)
NORMS = (*LAYER_NORM, "torch.nn.modules.normalization.RMSNorm", *IDENTITY)
