"""The VisionTransformer of torchvision: ViT-B, L and H, also with SWAG weights or a convolutional stem.

The head reads only the class token. The attention is torch's MultiheadAttention, which does not
return its keys, so the attention half is ours (``multihead.py``): equal to rounding.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.classes import DROPOUT, IDENTITY, NORMS
from tomecore.adapters.families.halves import feed_ln_2
from tomecore.adapters.families.multihead import (
    MULTIHEAD,
    anatomy_of,
    attention,
    trim_of,
    why_not,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"


def attend(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> tuple[Tokens, Array]:
    y, key = attention(host, block.self_attention, block.ln_1(x), bias, rows)
    return block.dropout(y) + (x if rows is None else x[:, :rows]), key


def prefix(tower: Any) -> int:
    """Return 1, for the class token."""
    return 1


def refuse(block: Any) -> str | None:
    if not block.self_attention.batch_first:
        return "its MultiheadAttention has batch_first=False, and would attend across the images"
    return why_not(block.self_attention)


ANATOMY = anatomy_of(attend, "self_attention", norm="ln_1")

VIT = Spec(
    family="torchvision VisionTransformer",
    blocks=("torchvision.models.vision_transformer.EncoderBlock",),
    towers={"torchvision.models.vision_transformer.VisionTransformer": "encoder.layers"},
    children={
        "ln_1": NORMS,
        "self_attention": MULTIHEAD,
        "dropout": (*DROPOUT, *IDENTITY),
        "ln_2": NORMS,
        "mlp": ("torchvision.models.vision_transformer.MLPBlock",),
    },
    attend=attend,
    feed=feed_ln_2,
    key_heads=2,
    prefix=prefix,
    patches="conv_proj",
    bypasses=("self_attention",),
    refuse=refuse,
    anatomy=ANATOMY,
    trim=trim_of(
        ANATOMY,
        towers=("torchvision.models.vision_transformer.VisionTransformer",),
        within=("torchvision.models.vision_transformer.Encoder",),
    ),
    notes="SWAG weights too; its own attention half around the fused kernel",
)

SPECS = (VIT,)
