"""MLP halves that several libraries share, named after the norm before the MLP."""

from __future__ import annotations

from typing import Protocol

from tomecore.adapters.families.attention import Layer
from tomecore.backends import Tokens

__all__ = ["feed_layer_norm2", "feed_ln_2"]


class HalfOfClip(Protocol):
    """The MLP half of a block of OpenAI's CLIP."""

    ln_2: Layer
    mlp: Layer


class HalfOfTransformers(Protocol):
    """The MLP half of a layer of transformers' CLIP."""

    layer_norm2: Layer
    mlp: Layer


def feed_ln_2(block: HalfOfClip, x: Tokens) -> Tokens:
    """Compute the MLP half of OpenAI's CLIP and torchvision."""
    return x + block.mlp(block.ln_2(x))


def feed_layer_norm2(block: HalfOfTransformers, x: Tokens) -> Tokens:
    """Compute the MLP half of BLIP and of the CLIPs of Hugging Face transformers and ppdiffusers."""
    return x + block.mlp(block.layer_norm2(x))
