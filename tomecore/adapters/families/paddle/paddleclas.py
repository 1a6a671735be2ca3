"""PaddleClas' ``foundation_vit``: CLIP, MAE, EVA, MoCo v3, BEiT v2, CAE, LaCLIP, React, Unicom.

They share one class: LayerScale is two raw parameters (or None), and position biases are a table in each
block. The library has one limit: its forward reads module globals that the last constructor wrote, so
a process should build only one kind of these models. A bias shared by all blocks is refused; no published
configuration uses one.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.attention import add_biases, split_heads
from tomecore.adapters.families.paddle.common import (
    NORMS,
    attend_with_dropout,
    carry_bias,
    feed_gamma,
    position_bias,
)
from tomecore.adapters.families.paddle.plsc import prefix
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "paddle"

_MODULE = ".ppcls.arch.backbone.model_zoo.foundation_vit"


def attend(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v = split_heads(attn.qkv(block.norm1(x)), attn.num_heads)
    scale = attn.scale
    if attn.use_fused_attn:  # that branch of the library ignores attn.scale
        scale = q.shape[3] ** -0.5
    bias = add_biases(position_bias(attn, block_kwargs), bias)
    y = attend_with_dropout(host, attn, (q, k, v), bias, attn.attn_drop, scale)
    y = attn.proj_drop(attn.proj(y))
    if block.gamma_1 is not None:
        y = block.gamma_1 * y
    return x + block.drop_path(y), k


def not_mae(tower: Any) -> bool:
    """Return False for MAE models, which are trained without proportional attention."""
    return bool(tower.model_name != "MAE")


def why_restore(tower: Any) -> str | None:
    if tower.feature_frame:
        return "the model lays all patches side by side (feature_frame)"
    if tower.return_mean_embed:
        return (
            "the model pools over tokens (return_mean_embed), and would count a merged token once "
            "instead of as often as its size"
        )
    if (tower.model_name, tower.model_size) == ("CLIP", "vit_base_patch16_224"):
        return "the model drops its class token and reads the first patch"
    return None


VIT = Spec(
    family="PaddleClas foundation_vit",
    blocks=(f"{_MODULE}.Block",),
    towers={f"{_MODULE}.VisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (f"{_MODULE}.Attention",),
        "drop_path": (f"{_MODULE}.DropPath", f"{_MODULE}.Identity"),
        "norm2": NORMS,
        "mlp": (f"{_MODULE}.Mlp",),
    },
    tensors=("gamma_1", "gamma_2"),
    attend=attend,
    feed=feed_gamma,
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    prop_attn=not_mae,
    carry=carry_bias,
    why_restore=why_restore,
    bypasses=("attn",),
    notes=(
        "CLIP, MAE, EVA, MoCo v3, BEiT v2, CAE, LaCLIP, React, Unicom; build one kind per process, "
        "because the library keeps it in module globals"
    ),
)

SPECS = (VIT,)
