"""Law 7 on the libraries themselves: a timm model and a PaddleClas model with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from paddleclas.ppcls.arch.backbone.model_zoo import (
    distilled_vision_transformer,
    vision_transformer,
)
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import parity

SIZES = {"img_size": 56, "patch_size": 4, "embed_dim": 48, "depth": 12, "num_heads": 4}
PAIRS = {
    "ViT": (VisionTransformer, vision_transformer.VisionTransformer),
    "distilled DeiT": (
        VisionTransformerDistilled,
        distilled_vision_transformer.DistilledVisionTransformer,
    ),
}


def build(kind: str, dtype: str) -> tuple[Any, Any]:
    torch_class, paddle_class = PAIRS[kind]
    generator = torch.Generator().manual_seed(0)
    model_a = torch_class(num_classes=7, **SIZES)
    with torch.no_grad():
        for name, p in model_a.named_parameters():
            noise = 0.1 * torch.randn(p.shape, generator=generator)
            p.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    model_b = paddle_class(class_num=7, qkv_bias=True, epsilon=1e-6, **SIZES)
    model_a.to(getattr(torch, dtype)).eval()
    model_b.to(dtype=dtype)
    model_b.eval()
    parity.transfer_weights(model_a, model_b)
    tomecore.adapters.torch.apply_patch(model_a)
    tomecore.adapters.paddle.apply_patch(model_b)
    return model_a, model_b


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("r", [8, 16, (12, -1.0), [5, 0, 30, 3]], ids=str)
def test_float64(kind: str, r: Any) -> None:
    model_a, model_b = build(kind, "float64")
    model_a.r = model_b.r = r
    images = np.random.default_rng(1).standard_normal((3, 3, 56, 56))
    report = parity.compare(model_a, model_b, images)
    assert report.layers
    assert report.identical_decisions == 1
    assert report.largest_difference < 1e-11
    assert model_a.tome.tokens == model_b.tome.tokens


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("kind", PAIRS)
def test_float32(kind: str) -> None:
    model_a, model_b = build(kind, "float32")
    model_a.r = model_b.r = 16
    images = np.random.default_rng(1).standard_normal((24, 3, 56, 56))
    report = parity.compare(model_a, model_b, images)
    assert report.largest_difference_agreeing < 1e-5
    assert report.largest_gap < 1e-5
    assert report.identical_decisions > 0.9
