"""Hugging Face transformers: the plain vision transformers, whose layers know no positions.

It supports ViT, DeiT, ViTMAE's encoder, ViTMSN, I-JEPA and ViViT, and DINOv2 with and without registers.
Only the tower is patched; MAE's decoder has layers of the same class. ``clip.py`` has the towers of models
with text, ``positions.py`` those with rotary positions or biases, and ``unmasked.py`` those whose layers
accept no mask.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec, qualified_name
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.families.classes import DROPOUT, IDENTITY, LAYER_NORM
from tomecore.adapters.families.transformers.common import (
    MASKED,
    READERS,
    anatomy_of,
    attend_rows,
    class_and_registers,
    hidden_states_wanted,
    hooked_by_others,
    no_mask,
    of,
    trim_of,
    with_bias,
)
from tomecore.adapters.families.transformers.refused import REFUSED
from tomecore.backends import Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

_VITS = {
    "vit": "ViT",
    "deit": "DeiT",
    "vit_mae": "ViTMAE",
    "vit_msn": "ViTMSN",
    "ijepa": "IJepa",
    "vivit": "Vivit",
}
#: models whose classifiers read only prefix tokens
_IMAGES = {name: _VITS[name] for name in ("vit", "deit", "vit_msn")}
_PREFIX_READ = _IMAGES | {"vivit": "Vivit"}
_DINOS = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}


def _each(models: dict[str, str], ending: str) -> tuple[str, ...]:
    return tuple(name for module, start in models.items() for name in of(module, start + ending))


def attend_vit(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> Tokens:
    attention, y = block.attention, block.layernorm_before(x)
    if rows is None:
        y, _ = attention(y, **with_bias(attention, bias, block_kwargs))
    else:
        x, y = x[:, :rows], attend_rows(host, attention, y, bias, block_kwargs, rows)
    return block.dropout(y) + x


def feed_vit(block: Any, x: Tokens) -> Tokens:
    return block.dropout(block.mlp(block.layernorm_after(x))) + x


def heads_vit(block: Any) -> int:
    return int(block.attention.num_attention_heads)


def prefix_vit(tower: Any) -> int:
    """Return the number of class and distillation tokens; I-JEPA has neither."""
    names = ("cls_token", "distillation_token")
    return sum(getattr(tower.embeddings, name, None) is not None for name in names)


def not_vit_mae(tower: Any) -> bool:
    """Return False for masked autoencoders, trained without proportional attention (ToMe, appendix)."""
    names = [qualified_name(cls) for cls in original_class(tower).__mro__]
    return not any(name in names for name in of("vit_mae", "ViTMAEModel"))


def attend_dino(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> Tokens:
    attention, y = block.attention, block.norm1(x)
    if rows is None:
        y, _ = attention(y, **with_bias(attention, bias, block_kwargs))
    else:
        x, y = x[:, :rows], attend_rows(host, attention, y, bias, block_kwargs, rows)
    return block.drop_path(block.layer_scale1(y)) + x


def feed_dino(block: Any, x: Tokens) -> Tokens:
    return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


ANATOMY_VIT = anatomy_of(attend_vit, "attention", "layernorm_before", _each(_VITS, "Attention"))
ANATOMY_DINO = anatomy_of(attend_dino, "attention", "norm1", _each(_DINOS, "Attention"))

VIT = Spec(
    family="transformers ViT",
    blocks=_each(_VITS, "Layer"),
    towers=dict.fromkeys(_each(_VITS, "Model"), "layers"),
    children={
        "attention": _each(_VITS, "Attention"),
        "layernorm_before": LAYER_NORM,
        "layernorm_after": LAYER_NORM,
        "mlp": _each(_VITS, "MLP"),
        "dropout": DROPOUT,
    },
    attend=attend_vit,
    feed=feed_vit,
    key="attention.k_proj",
    heads=heads_vit,
    prefix=prefix_vit,
    prop_attn=not_vit_mae,
    arguments=MASKED,
    accepts={"is_causal": False},
    carry=no_mask,
    dense=hidden_states_wanted,
    readers=READERS,
    refused=REFUSED,
    hooked=hooked_by_others,
    patches="embeddings.patch_embeddings",
    anatomy=ANATOMY_VIT,
    trim=trim_of(
        ANATOMY_VIT,
        towers=_each(_PREFIX_READ, "Model"),
        around=(
            *_each(_IMAGES, "ForImageClassification"),
            *of("deit", "DeiTForImageClassificationWithTeacher"),
            *of("vivit", "VivitForVideoClassification"),
        ),
    ),
    notes="transformers 5.9 and later; MAE encoder: prop_attn=False by default",
)

DINO = Spec(
    family="transformers DINOv2",
    blocks=_each(_DINOS, "Layer"),
    towers=dict.fromkeys(_each(_DINOS, "Encoder"), "layer"),
    children={
        "norm1": LAYER_NORM,
        "attention": _each(_DINOS, "Attention"),
        "layer_scale1": _each(_DINOS, "LayerScale"),
        "drop_path": (*IDENTITY, *_each(_DINOS, "DropPath")),
        "norm2": LAYER_NORM,
        "mlp": (*_each(_DINOS, "MLP"), *_each(_DINOS, "SwiGLUFFN")),
        "layer_scale2": _each(_DINOS, "LayerScale"),
    },
    attend=attend_dino,
    feed=feed_dino,
    key="attention.k_proj",
    heads=heads_vit,
    prefix=class_and_registers,
    arguments=MASKED,
    accepts={"is_causal": False},
    carry=no_mask,
    dense=hidden_states_wanted,
    readers=READERS,
    hooked=hooked_by_others,
    patches="embeddings.patch_embeddings",
    anatomy=ANATOMY_DINO,
    trim=trim_of(
        ANATOMY_DINO,
        towers=_each(_DINOS, "Encoder"),
        around=_each(_DINOS, "Model"),
    ),
    notes="recorded hidden states and backbones keep all tokens; attentions are those of merged tokens",
)

SPECS = (VIT, DINO)
