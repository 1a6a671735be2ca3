"""PASSL's DINO and DINOv2, whose blocks differ from the plain ones it shares with PLSC.

Their attention accepts no bias, so the attention half is ours: the framework's fused kernel between
the module's own projections. These are refused: blocks in chunks (``block_chunks``), and
training DINOv2 with a drop path above 0.1, where the library calls ``paddle.index_add_`` with
wrong arguments.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.attention import fused_qkv, split_heads
from tomecore.adapters.families.paddle.common import (
    IDENTITY,
    NORMS,
    attend_with_dropout,
    one_prefix_token,
)
from tomecore.adapters.families.paddle.plsc import feed as feed_plain
from tomecore.adapters.families.readers import IntermediateLayers
from tomecore.backends import Array, Bias, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "paddle"

_PLAIN = ".passl.models.vision_transformer"
_DINO = ".passl.models.dino.dino_vit"
_DINOV2 = ".passl.models.dinov2.dinov2_vit"
_DROP_PATHS = (f"{_PLAIN}.DropPath", IDENTITY)
_SCALES = (f"{_DINOV2}.LayerScale", IDENTITY)


def attend_dino(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v = split_heads(attn.qkv(block.norm1(x)), attn.num_heads)
    y = attend_with_dropout(host, attn, (q, k, v), bias, attn.attn_dropout, attn.scales)
    return x + block.drop_path(attn.proj_dropout(attn.proj(y))), k


def attend_dinov2(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v, scale = fused_qkv(host, attn, block.norm1(x))
    y = attend_with_dropout(host, attn, (q, k, v), bias, attn.attn_drop, scale)
    return x + drop_path(block, block.ls1(attn.proj_drop(attn.proj(y)))), k


def feed_dinov2(block: Any, x: Tokens) -> Tokens:
    return x + drop_path(block, block.ls2(block.mlp(block.norm2(x))))


def drop_path(block: Any, y: Tokens) -> Tokens:
    """Apply the drop path that both halves of the block share."""
    if not block.training:
        return y
    if block.sample_drop_ratio > 0.1:
        raise UnsupportedModelError(
            f"a DINOv2 block of PASSL in training with drop_path={block.sample_drop_ratio} fails in "
            "the library itself. Build the model with drop_path_rate up to 0.1."
        )
    return block.drop_path1(y)


DINO = Spec(
    family="PASSL DINO",
    blocks=(f"{_DINO}.Block",),
    towers={f"{_DINO}.DINOVisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (f"{_DINO}.Attention",),
        "drop_path": _DROP_PATHS,
        "norm2": NORMS,
        "mlp": (f"{_PLAIN}.Mlp",),
    },
    attend=attend_dino,
    feed=feed_plain,
    key_heads=2,
    prefix=one_prefix_token,
    patches="patch_embed",
    arguments=("return_attention",),
    accepts={"return_attention": False},
    bypasses=("attn",),
    tower_mixin=IntermediateLayers,
    notes="attention maps only with r = 0; PASSL needs a shim on Paddle 3: tested on a twin",
)

DINOV2 = Spec(
    family="PASSL DINOv2",
    blocks=(f"{_DINOV2}.Block",),
    towers={f"{_DINOV2}.DINOv2VisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (f"{_PLAIN}.Attention",),
        "ls1": _SCALES,
        "drop_path1": _DROP_PATHS,
        "norm2": NORMS,
        "mlp": (
            f"{_PLAIN}.Mlp",
            f"{_DINOV2}.SwiGLUFFN",
            f"{_DINOV2}.SwiGLUFFNFused",
            IDENTITY,
        ),
        "ls2": _SCALES,
        "drop_path2": _DROP_PATHS,
    },
    attend=attend_dinov2,
    feed=feed_dinov2,
    key_heads=2,
    prefix=one_prefix_token,
    patches="patch_embed",
    bypasses=("attn",),
    tower_mixin=IntermediateLayers,
    notes="LayerScale and SwiGLU; no block chunks; as above, its own class by benchmarks/plsc_sources.py",
)

SPECS = (DINO, DINOV2)
