"""torchvision's models, built small with random weights: one line per kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from adapters.cases import Case
from adapters.frameworks import TORCH
from torch import nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

__all__ = ["MORE", "torchvision_model"]

STEM = [ConvStemConfig(8, 3, 2, norm_layer=nn.Identity), ConvStemConfig(16, 3, 2, nn.Identity)]


def torchvision_model(**fixed: Any) -> Callable[..., Any]:
    def build(img_size: int, depth: int) -> Any:
        sizes = {"image_size": img_size, "patch_size": 4, "num_layers": depth, "num_heads": 4}
        widths = {"hidden_dim": 32, "mlp_dim": 64, "num_classes": 7}
        return VisionTransformer(**{**sizes, **widths, **fixed})

    return build


def _case(name: str, **fixed: Any) -> Case:
    build = torchvision_model(**fixed)
    return Case(f"torchvision-{name}", TORCH, build, exact=False, layers="encoder.layers")


MORE = [
    _case("plain"),
    _case("one-head", num_heads=1),
    _case("rms", norm_layer=partial(nn.RMSNorm, eps=1e-6)),
    _case("conv-stem", conv_stem_configs=STEM, representation_size=16),
]
