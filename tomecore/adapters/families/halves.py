"""MLP halves that several libraries share, named after the norm before the MLP."""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array

__all__ = ["feed_layer_norm2", "feed_ln_2"]


def feed_ln_2(block: Any, x: Array) -> Array:
    """Compute the MLP half of OpenAI's CLIP and torchvision."""
    return x + block.mlp(block.ln_2(x))


def feed_layer_norm2(block: Any, x: Array) -> Array:
    """Compute the MLP half of BLIP and of the CLIPs of Hugging Face transformers and ppdiffusers."""
    return x + block.mlp(block.layer_norm2(x))
