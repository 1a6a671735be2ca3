"""Real models, built small with random weights: one line per kind of model.

A line here puts a model under every law of ``test_laws.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapters.cases import TINY, Case
from adapters.frameworks import PADDLE, TORCH
from paddleclas.ppcls.arch.backbone.model_zoo import distilled_vision_transformer as clas_distilled
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas
from ppim.models import deit as ppim_deit
from ppim.models import vit as ppim_vit
from timm.layers import Attention, RmsNorm, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

__all__ = ["PADDLE_MODELS", "REAL", "TIMM", "case_named", "ppim_plain", "timm_model"]


def timm_model(cls: Any = VisionTransformer, **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls(**{**TINY, "num_classes": 7, **fixed, **sizes})

    return build


def unfused(**sizes: Any) -> Any:
    """timm's attention as it runs where no fused kernel is to be used."""
    model = timm_model()(**sizes)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def gated(**sizes: Any) -> Any:
    model = timm_model()(**sizes)
    for block in model.blocks:
        block.attn = Attention(32, num_heads=4, qkv_bias=True, gated=True)
    return model


def paddle_model(cls: Any, classes: str = "class_num", **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls(**{**TINY, classes: 7, "qkv_bias": True, **fixed, **sizes})

    return build


def ppim_plain(class_num: int, **arguments: Any) -> Any:
    return ppim_vit.VisionTransformer(class_dim=class_num, **arguments)


def _timm(name: str, prefix: int = 1, pooled: bool = False, **fixed: Any) -> Case:
    drops = "drop_path_rate" in fixed
    return Case(f"timm-{name}", TORCH, timm_model(**fixed), prefix, pooled, drops=drops)


def _paddle(name: str, build: Callable[..., Any], prefix: int = 1, **known: Any) -> Case:
    return Case(name, PADDLE, build, prefix, exact=False, **known)


TIMM = [
    Case("timm-plain", TORCH, timm_model(), golden=VisionTransformer),
    Case("timm-distilled", TORCH, timm_model(VisionTransformerDistilled), prefix=2),
    Case("timm-unfused", TORCH, unfused),
    Case("timm-gated", TORCH, gated),
    _timm("layer-scale", init_values=0.1),
    _timm("qk-norm", qk_norm=True),
    _timm("scale-attn-norm", scale_attn_norm=True),
    _timm("registers", prefix=5, reg_tokens=4),
    _timm("no-embed-class", prefix=3, reg_tokens=2, no_embed_class=True),
    _timm("dynamic", dynamic_img_size=True),
    _timm("drop-path", drop_path_rate=0.5),
    _timm("rms-swiglu", norm_layer=RmsNorm, mlp_layer=SwiGLU, act_layer=nn.SiLU, pre_norm=True),
    _timm("average", prefix=0, pooled=True, class_token=False, global_pool="avg"),
    _timm("average-registers", prefix=5, pooled=True, reg_tokens=4, global_pool="avg"),
    _timm("map", prefix=0, pooled=True, class_token=False, global_pool="map"),
]

PADDLE_MODELS = [
    _paddle(
        "paddleclas-plain", paddle_model(clas.VisionTransformer), golden=clas.VisionTransformer
    ),
    _paddle("paddleclas-scaled", paddle_model(clas.VisionTransformer, qk_scale=32**-0.5)),
    _paddle(
        "paddleclas-drop-path",
        paddle_model(clas.VisionTransformer, drop_path_rate=0.5),
        drops=True,
    ),
    _paddle("paddleclas-distilled", paddle_model(clas_distilled.DistilledVisionTransformer), 2),
    _paddle("ppim-plain", paddle_model(ppim_vit.VisionTransformer, "class_dim"), golden=ppim_plain),
    _paddle("ppim-distilled", paddle_model(ppim_deit.DistilledVisionTransformer, "class_dim"), 2),
]

REAL = [*TIMM, *PADDLE_MODELS]


def case_named(name: str) -> Case:
    return next(case for case in REAL if case.name == name)
