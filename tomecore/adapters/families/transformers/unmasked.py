"""Hugging Face transformers: vision transformers whose layers accept no mask.

The attention of VideoMAE, of DPT's own ViT, and of DINOv2 before transformers 5.18 has no argument for one.
So if there are sizes to add, the attention half is ours: the fused kernel with the module's projections and
dropouts. BLIP's towers also project queries, keys and values at once, so their
half is always ours. Hooks on the bypassed modules are refused, and so is recording attentions while tokens
merge. InternVL's attention accepts a mask, but its layer does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec, never
from tomecore.adapters.families.attention import attend_heads, separate_qkv, split_heads
from tomecore.adapters.families.classes import DROPOUT, LAYER_NORM
from tomecore.adapters.families.halves import feed_layer_norm2
from tomecore.adapters.families.transformers.common import (
    FLAGS,
    hidden_states_wanted,
    hooked_by_others,
    is_recorded,
    no_mask,
    no_prefix,
    of,
    one_prefix_token,
    where_pooled,
    with_bias,
)
from tomecore.adapters.families.transformers.vit import DINO
from tomecore.backends import Array, Bias, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

#: module -> prefix of its class names
_BLIPS = {
    "blip": "Blip",
    "blip_2": "Blip2",
    "instructblip": "InstructBlip",
    "instructblipvideo": "InstructBlipVideo",
}


#: the attention that accepts no mask, and the module inside it
_INNER = ("attention", "attention.attention")


def _blip(ending: str) -> tuple[str, ...]:
    return tuple(name for module, start in _BLIPS.items() for name in of(module, start + ending))


def check_not_recorded() -> None:
    """Raise if this pass records attentions, which our attention half does not compute."""
    if is_recorded("attentions"):
        raise UnsupportedModelError(
            "the attention of this model accepts no bias, so merging uses a kernel that gives no "
            "attentions to record. Call it without output_attentions, or set model.r = 0."
        )


def attend_two_deep(
    host: Host, block: Any, y: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    """Return ``block.attention`` of ``y``; its parts are ``attention`` and the projection ``output``."""
    if bias is None:
        return block.attention(y, **block_kwargs)
    inner = block.attention.attention
    check_not_recorded()
    qkv = separate_qkv((inner.query, inner.key, inner.value), y, inner.attention_head_size)
    dropout = inner.dropout_prob if inner.training else 0.0
    return block.attention.output(attend_heads(host, qkv, bias, dropout, inner.scaling), y)


def attend_two(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    return attend_two_deep(host, block, block.layernorm_before(x), bias, block_kwargs) + x


def feed_two(block: Any, x: Tokens) -> Tokens:
    return block.output(block.intermediate(block.layernorm_after(x)), x)


def attend_old_dino(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    y = attend_two_deep(host, block, block.norm1(x), bias, block_kwargs)
    return block.drop_path(block.layer_scale1(y)) + x


def heads_two(block: Any) -> int:
    return int(block.attention.attention.num_attention_heads)


def attend_blip(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attention = block.self_attn
    check_not_recorded()
    q, k, v = split_heads(attention.qkv(block.layer_norm1(x)), attention.num_heads)
    rate = (
        attention.attention_dropout
        if hasattr(attention, "attention_dropout")
        else attention.dropout.p
    )
    dropout = rate if attention.training else 0.0
    y = attend_heads(host, (q, k, v), bias, dropout, attention.scale)
    return attention.projection(y) + x, k


def attend_internvl(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    attention = block.attention
    y, _ = attention(block.layernorm_before(x), **with_bias(attention, bias, block_kwargs))
    return block.lambda_1 * y + x


def feed_internvl(block: Any, x: Tokens) -> Tokens:
    return block.lambda_2 * block.dropout(block.mlp(block.layernorm_after(x))) + x


def heads_internvl(block: Any) -> int:
    return int(block.attention.num_heads)


def _two(family: str, module: str, start: str, tower: str, **known: Any) -> Spec:
    return Spec(
        family=family,
        blocks=of(module, f"{start}Layer"),
        towers=dict.fromkeys(of(module, tower), "encoder.layer"),
        children={
            "attention": of(module, f"{start}Attention"),
            "intermediate": of(module, f"{start}Intermediate"),
            "output": of(module, f"{start}Output"),
            "layernorm_before": LAYER_NORM,
            "layernorm_after": LAYER_NORM,
        },
        attend=attend_two,
        feed=feed_two,
        key="attention.attention.key",
        heads=heads_two,
        arguments=FLAGS,
        carry=no_mask,
        dense=hidden_states_wanted,
        bypasses_biased=_INNER,
        hooked=hooked_by_others,
        patches="embeddings.patch_embeddings",
        **known,
    )


VIDEO_MAE = _two(
    "transformers VideoMAE",
    "videomae",
    "VideoMAE",
    "VideoMAEModel",
    prefix=no_prefix,
    prop_attn=never,
    notes="prop_attn=False by default; with it, attentions cannot be recorded",
    why_restore=where_pooled,
)

OLD_DINO = replace(
    DINO,
    family="transformers DINOv2 before 5.18",
    attend=attend_old_dino,
    key="attention.attention.key",
    heads=heads_two,
    arguments=(),
    carry=None,
    bypasses_biased=_INNER,
    notes="attentions cannot be recorded while merging with prop_attn=True",
)

DPT = _two(
    "transformers DPT",
    "dpt",
    "DPTViT",
    "DPTModel",
    prefix=one_prefix_token,
    notes="attentions cannot be recorded while merging with prop_attn=True",
)

BLIP = Spec(
    family="transformers BLIP",
    blocks=_blip("EncoderLayer"),
    towers=dict.fromkeys(_blip("VisionModel"), "encoder.layers"),
    children={
        "self_attn": _blip("Attention"),
        "layer_norm1": LAYER_NORM,
        "mlp": _blip("MLP"),
        "layer_norm2": LAYER_NORM,
    },
    attend=attend_blip,
    feed=feed_layer_norm2,
    key_heads=2,
    prefix=one_prefix_token,
    arguments=FLAGS,
    carry=no_mask,
    dense=hidden_states_wanted,
    bypasses=("self_attn",),
    hooked=hooked_by_others,
    patches="embeddings.patch_embedding",
    notes="attentions cannot be recorded while merging",
)

INTERNVL = Spec(
    family="transformers InternVL",
    blocks=of("internvl", "InternVLVisionLayer"),
    towers=dict.fromkeys(of("internvl", "InternVLVisionModel"), "encoder.layer"),
    children={
        "attention": of("internvl", "InternVLVisionAttention"),
        "mlp": of("internvl", "InternVLVisionMLP"),
        "layernorm_before": (*LAYER_NORM, *of("internvl", "InternVLVisionRMSNorm")),
        "layernorm_after": (*LAYER_NORM, *of("internvl", "InternVLVisionRMSNorm")),
        "dropout": DROPOUT,
    },
    tensors=("lambda_1", "lambda_2"),
    attend=attend_internvl,
    feed=feed_internvl,
    key="attention.k_norm",
    heads=heads_internvl,
    prefix=one_prefix_token,
    dense=hidden_states_wanted,
    hooked=hooked_by_others,
    patches="embeddings.patch_embeddings",
    notes="restore=True for its pixel shuffle",
)

SPECS = (OLD_DINO, VIDEO_MAE, DPT, BLIP, INTERNVL)
