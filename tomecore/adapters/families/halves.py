"""MLP halves that are the same in several libraries, named after the norm in front of the MLP."""

from __future__ import annotations

from typing import Any

from tomecore.backends import Array

__all__ = ["feed_layer_norm2", "feed_ln_2"]


def feed_ln_2(block: Any, x: Array) -> Array:
    """OpenAI's CLIP and torchvision."""
    return x + block.mlp(block.ln_2(x))


def feed_layer_norm2(block: Any, x: Array) -> Array:
    """The CLIPs of Hugging Face transformers and ppdiffusers, and BLIP."""
    return x + block.mlp(block.layer_norm2(x))
