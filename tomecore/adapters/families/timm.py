"""timm's VisionTransformer with its standard Block, and tomecore's own ViT, which has the same anatomy.

Covers LayerScale, query-key norm, attention norm and gates, differential attention, drop path,
distillation and register tokens, all pools, and NaFlexVit's padded batches: the attention is timm's
own, called as a module, with the key tapped behind ``k_norm`` and the bias given as ``attn_mask``.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters._spec import Spec
from tomecore.adapters.families._timm import (
    ARGUMENTS,
    ATTENTIONS,
    DROP_PATHS,
    MLPS,
    NORMS,
    SCALES,
    TOWERS,
    Dense,
    pools_over_tokens,
    prefix,
    real_tokens,
)
from tomecore.backends import Array

__all__ = ["FRAMEWORK", "SPECS", "VIT"]

FRAMEWORK = "torch"


def attend(host: Any, block: Any, x: Array, bias: Array | None, given: dict[str, Any]) -> Array:
    y = block.attn(block.norm1(x), attn_mask=bias)
    return x + block.drop_path1(block.ls1(y))


def feed(block: Any, x: Array) -> Array:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


VIT = Spec(
    family="timm VisionTransformer",
    blocks=("timm.models.vision_transformer.Block", "tomecore.models.torch.Block"),
    towers={**TOWERS, "tomecore.models.torch.VisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (*ATTENTIONS, "tomecore.models.torch.Attention"),
        "ls1": SCALES,
        "drop_path1": DROP_PATHS,
        "norm2": NORMS,
        "mlp": (*MLPS, "tomecore.models.torch.Mlp"),
        "ls2": SCALES,
        "drop_path2": DROP_PATHS,
    },
    attend=attend,
    feed=feed,
    key="attn.k_norm",
    prefix=prefix,
    arguments=ARGUMENTS,
    accepts={"is_causal": False},
    mask="attn_mask",
    real_tokens=real_tokens,
    why_restore=pools_over_tokens,
    tower_mixin=Dense,
    notes=(
        "DeiT, DeiT III, DINOv2, SigLIP, CLIP, MAE, AugReg ...; LayerScale, query-key norm, "
        "gates, registers, all pools; padding masks"
    ),
)

SPECS = (VIT,)
