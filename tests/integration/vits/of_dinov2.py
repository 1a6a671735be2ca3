"""The official DINOv2, built small with random weights: one line per kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from adapters.cases import Case
from adapters.frameworks import TORCH
from dinov2.layers import MemEffAttention, NestedTensorBlock
from dinov2.layers.block import Block
from dinov2.models.vision_transformer import DinoVisionTransformer

__all__ = ["MORE", "dinov2_model"]


def dinov2_model(**fixed: Any) -> Callable[..., Any]:
    def build(img_size: int, depth: int) -> Any:
        sizes = {"img_size": img_size, "patch_size": 4, "depth": depth, "num_heads": 4}
        usual = {"embed_dim": 32, "mlp_ratio": 2, "init_values": 0.1, "block_chunks": 0}
        block = partial(NestedTensorBlock, attn_class=MemEffAttention)
        return DinoVisionTransformer(**{**sizes, **usual, "block_fn": block, **fixed})

    return build


def _case(name: str, **fixed: Any) -> Case:
    return Case(f"dinov2-{name}", TORCH, dinov2_model(**fixed), exact=False)


MORE = [
    _case("plain"),
    _case("swiglu", ffn_layer="swiglufused", block_fn=Block, init_values=None),
]
