"""The models of Paddle's libraries, built small with random weights: one line per kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from adapters.cases import TINY, Case
from adapters.frameworks import PADDLE
from paddleclas.ppcls.arch.backbone.model_zoo import distilled_vision_transformer as clas_distilled
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas
from ppim.models import deit as ppim_deit
from ppim.models import vit as ppim_vit

__all__ = ["PLAIN", "ppim_plain"]


def paddle_model(cls: Any, classes: str = "class_num", **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls(**{**TINY, classes: 7, "qkv_bias": True, **fixed, **sizes})

    return build


def ppim_plain(class_num: int, **arguments: Any) -> Any:
    return ppim_vit.VisionTransformer(class_dim=class_num, **arguments)


def _paddle(name: str, build: Callable[..., Any], prefix: int = 1, **known: Any) -> Case:
    return Case(name, PADDLE, build, prefix, exact=False, **known)


PLAIN = [
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
