"""torchvision's VisionTransformer: ViT-B, L and H, also with SWAG weights or a convolutional stem.

One class token, which alone is read at the end. The attention is torch's MultiheadAttention, which
hands out no keys, so the attention half is ours (``multihead.py``): equal to rounding.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.spec import Spec
from tomecore.adapters.families.multihead import (
    MULTIHEAD,
    attention,
    attention_of_rows,
    trim_of,
    why_not,
)
from tomecore.backends import Array

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

_NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.normalization.RMSNorm",
    "torch.nn.modules.linear.Identity",
)
_DROPOUTS = ("torch.nn.modules.dropout.Dropout", "torch.nn.modules.linear.Identity")


def attend(
    host: Any, block: Any, x: Array, bias: Array | None, given: dict[str, Any]
) -> tuple[Array, Array]:
    y, key = attention(host, block.self_attention, block.ln_1(x), bias)
    return block.dropout(y) + x, key


def attend_rows(
    host: Any, block: Any, x: Array, bias: Array | None, given: dict[str, Any], rows: int
) -> Array:
    y = attention_of_rows(host, block.self_attention, block.ln_1(x), bias, rows)
    return block.dropout(y) + x[:, :rows]


def feed(block: Any, x: Array) -> Array:
    return x + block.mlp(block.ln_2(x))


def prefix(tower: Any) -> int:
    """The class token."""
    return 1


def refuse(block: Any) -> str | None:
    if not block.self_attention.batch_first:
        return "its MultiheadAttention has batch_first=False, and would attend across the images"
    return why_not(block.self_attention)


VIT = Spec(
    family="torchvision VisionTransformer",
    blocks=("torchvision.models.vision_transformer.EncoderBlock",),
    towers={"torchvision.models.vision_transformer.VisionTransformer": "encoder.layers"},
    children={
        "ln_1": _NORMS,
        "self_attention": MULTIHEAD,
        "dropout": _DROPOUTS,
        "ln_2": _NORMS,
        "mlp": ("torchvision.models.vision_transformer.MLPBlock",),
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    patches="conv_proj",
    bypasses=("self_attention",),
    refuse=refuse,
    trim=trim_of(
        "self_attention",
        of=attend,
        attend=attend_rows,
        towers=("torchvision.models.vision_transformer.VisionTransformer",),
        within=("torchvision.models.vision_transformer.Encoder",),
    ),
    notes="SWAG weights too; an attention half of our own around the fused kernel",
)

SPECS = (VIT,)
