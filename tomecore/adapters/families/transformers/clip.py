"""Hugging Face transformers: CLIP's vision tower, and those built like it.

It supports CLIP, MetaCLIP 2, AltCLIP, Chinese CLIP, SigLIP, Kosmos-2 and GIT, and SigLIP 2, Idefics 2 and 3
and SmolVLM, whose towers pad; also LLaVA, PaliGemma, Gemma 3 and others that hold one of them. Only the
vision tower is patched; text towers have layers of the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.classes import LAYER_NORM
from tomecore.adapters.families.halves import feed_layer_norm2
from tomecore.adapters.families.transformers.common import (
    MASKED,
    READERS,
    anatomy_of,
    attend_rows,
    hidden_states_wanted,
    hooked_by_others,
    no_mask,
    of,
    trim_of,
    where_pooled,
    with_bias,
)
from tomecore.backends import Array, Bias, Mask, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

#: module -> name of the tower, layer, attention, MLP
_CLIPS = {
    "clip": ("CLIPVisionModel", "CLIPEncoderLayer", "CLIPAttention", "CLIPMLP"),
    "metaclip_2": (
        "MetaClip2VisionModel",
        "MetaClip2EncoderLayer",
        "MetaClip2Attention",
        "MetaClip2MLP",
    ),
    "siglip": ("SiglipVisionModel", "SiglipEncoderLayer", "SiglipAttention", "SiglipMLP"),
    "altclip": ("AltCLIPVisionModel", "AltCLIPEncoderLayer", "AltCLIPAttention", "AltCLIPMLP"),
    "chinese_clip": (
        "ChineseCLIPVisionModel",
        "ChineseCLIPVisionLayer",
        "ChineseCLIPVisionAttention",
        "ChineseCLIPVisionMLP",
    ),
    "kosmos2": (
        "Kosmos2VisionTransformer",
        "Kosmos2VisionEncoderLayer",
        "Kosmos2VisionAttention",
        "Kosmos2VisionMLP",
    ),
    "git": ("GitVisionTransformer", "GitVisionEncoderLayer", "GitVisionAttention", "GitVisionMLP"),
}
_PADDED = {
    "siglip2": ("Siglip2VisionModel", "Siglip2EncoderLayer", "Siglip2Attention", "Siglip2MLP"),
    "idefics2": (
        "Idefics2VisionTransformer",
        "Idefics2EncoderLayer",
        "Idefics2VisionAttention",
        "Idefics2VisionMLP",
    ),
    "idefics3": (
        "Idefics3VisionTransformer",
        "Idefics3EncoderLayer",
        "Idefics3VisionAttention",
        "Idefics3VisionMLP",
    ),
    "smolvlm": (
        "SmolVLMVisionTransformer",
        "SmolVLMEncoderLayer",
        "SmolVLMVisionAttention",
        "SmolVLMVisionMLP",
    ),
}


def _nth(models: Mapping[str, tuple[str, ...]], n: int) -> tuple[str, ...]:
    return tuple(name for module, classes in models.items() for name in of(module, classes[n]))


def attend_clip(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> Tokens:
    attention, y = block.self_attn, block.layer_norm1(x)
    if rows is None:
        y, _ = attention(hidden_states=y, **with_bias(attention, bias, block_kwargs))
    else:
        x, y = x[:, :rows], attend_rows(host, attention, y, bias, block_kwargs, rows)
    return x + y


def heads_clip(block: Any) -> int:
    return int(block.self_attn.num_heads)


def prefix_clip(tower: Any) -> int:
    """Return the number of class tokens; SigLIP has none."""
    return int(getattr(tower.embeddings, "class_embedding", None) is not None)


def real_tokens(mask: Array) -> Mask:
    """Return which tokens are real, from the mask that the tower builds from its padding mask.

    The mask is the same for every query: (B, N) for flash attention, else (B, 1, N or 1, N), True or 0 for
    real tokens.
    """
    row = mask if len(mask.shape) == 2 else mask[:, 0, 0]
    return row == 0 if row.dtype.is_floating_point else row != 0


#: models that read only the pooler, which reads only the class token
_PREFIX_POOLED = ("clip", "metaclip_2", "altclip", "chinese_clip")
_PREFIX = {name: _CLIPS[name] for name in _PREFIX_POOLED}

ANATOMY = anatomy_of(attend_clip, "self_attn", "layer_norm1", _nth(_PREFIX, 2), "out_proj")

CLIP = Spec(
    family="transformers CLIP / SigLIP",
    blocks=_nth(_CLIPS, 1),
    towers=dict.fromkeys(_nth(_CLIPS, 0), "encoder.layers"),
    children={
        "self_attn": _nth(_CLIPS, 2),
        "layer_norm1": LAYER_NORM,
        "mlp": _nth(_CLIPS, 3),
        "layer_norm2": LAYER_NORM,
    },
    attend=attend_clip,
    feed=feed_layer_norm2,
    key="self_attn.k_proj",
    heads=heads_clip,
    prefix=prefix_clip,
    arguments=MASKED,
    accepts={"is_causal": False},
    carry=no_mask,
    dense=hidden_states_wanted,
    readers=READERS,
    hooked=hooked_by_others,
    patches="embeddings.patch_embedding",
    why_restore=where_pooled,
    anatomy=ANATOMY,
    trim=trim_of(
        ANATOMY,
        towers=_nth(_PREFIX, 0),
        around=(
            *of("clip", "CLIPModel", "CLIPVisionModelWithProjection"),
            *of("metaclip_2", "MetaClip2Model", "MetaClip2VisionModelWithProjection"),
            *of("altclip", "AltCLIPModel"),
            *of("chinese_clip", "ChineseCLIPModel"),
        ),
        within=(
            *of("clip", "CLIPEncoder"),
            *of("metaclip_2", "MetaClip2Encoder"),
            *of("altclip", "AltCLIPEncoder"),
            *of("chinese_clip", "ChineseCLIPVisionEncoder"),
        ),
    ),
    notes="also inside LLaVA, PaliGemma, Gemma 3 ...; flash attention needs prop_attn=False",
)

PADDED = replace(
    CLIP,
    family="transformers SigLIP 2 / Idefics",
    blocks=_nth(_PADDED, 1),
    towers=dict.fromkeys(_nth(_PADDED, 0), "encoder.layers"),
    children={**CLIP.children, "self_attn": _nth(_PADDED, 2), "mlp": _nth(_PADDED, 3)},
    mask="attention_mask",
    real_tokens=real_tokens,
    anatomy=None,  # it has no class token
    trim=None,
    notes="padding merges first and weighs nothing; needs sdpa or eager attention where there is padding",
)

SPECS = (CLIP, PADDED)
