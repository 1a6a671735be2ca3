"""PaddleSeg's ViT and CAE backbones, whose readers get the tokens of every block as a grid.

So every block returns all tokens, with the merged token at each of its positions, and the next block takes
one token of each group again: the computation saves as much as elsewhere. ViT-Adapter is not supported,
because it runs its blocks in groups with the grid between them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.attention import add_biases, split_heads
from tomecore.adapters.families.paddle.common import (
    NORMS,
    attend_with_dropout,
    carry_bias,
    feed_gamma,
    one_prefix_token,
    position_bias,
)
from tomecore.adapters.families.paddle.plsc import attend as attend_plain
from tomecore.adapters.families.paddle.plsc import feed as feed_plain
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "paddle"

_VIT = "paddleseg.models.backbones.vision_transformer"
_CAE = "paddleseg.models.backbones.cae"
_DROP_PATHS = (
    "paddleseg.models.backbones.transformer_utils.DropPath",
    "paddleseg.models.backbones.transformer_utils.Identity",
)


def attend_cae(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    y = block.norm1(x)
    projected = None
    if attn.q_bias is not None:
        xp = host.backend().xp
        projected = xp.concat([attn.q_bias, xp.zeros_like(attn.v_bias), attn.v_bias])
    qkv = host.linear(y, attn.qkv.weight, projected)
    q, k, v = split_heads(qkv, attn.num_heads)
    bias = add_biases(position_bias(attn, block_kwargs), bias)
    y = attend_with_dropout(host, attn, (q, k, v), bias, attn.attn_drop, attn.scale)
    y = attn.proj_drop(attn.proj(y))
    if block.gamma_1 is not None:
        y = block.gamma_1 * y
    return x + block.drop_path(y), k


def always(tower: Any) -> bool:
    return True


def lays_out(tower: Any) -> str | None:
    return "the model returns the tokens of every block as a grid of patches"


VIT = Spec(
    family="PaddleSeg VisionTransformer",
    blocks=(f"{_VIT}.Block",),
    towers={f"{_VIT}.VisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (f"{_VIT}.Attention",),
        "drop_path": _DROP_PATHS,
        "norm2": NORMS,
        "mlp": (f"{_VIT}.Mlp",),
    },
    attend=attend_plain,
    feed=feed_plain,
    key_heads=2,
    prefix=one_prefix_token,
    patches="patch_embed",
    dense=always,
    why_restore=lays_out,
    bypasses=("attn",),
    refused={
        "paddleseg.models.backbones.vit_adapter.ViTAdapter": (
            "it passes a grid of patches to groups of blocks, and the grid must stay complete"
        )
    },
    notes="every block returns all tokens, for decoders; no ViT-Adapter",
)

CAE = replace(
    VIT,
    family="PaddleSeg CAE",
    blocks=(f"{_CAE}.Block",),
    towers={f"{_CAE}.CAE": "blocks"},
    children={**VIT.children, "attn": (f"{_CAE}.Attention",), "mlp": (f"{_CAE}.Mlp",)},
    tensors=("gamma_1", "gamma_2"),
    attend=attend_cae,
    feed=feed_gamma,
    arguments=("rel_pos_bias",),
    carry=carry_bias,
    bypasses=("attn", "attn.qkv"),
    refused={},
    notes="as above; biases of merged tokens are as large as the attention scores",
)

SPECS = (VIT, CAE)
