"""The same plain ViT in torch and in Paddle, with the same random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import parity
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models

__all__ = ["images", "pair", "patched_pair"]

SIZES = {"img_size": 56, "patch_size": 4, "embed_dim": 48, "depth": 12, "num_heads": 4}


def pair(dtype: str = "float64", **arguments: Any) -> tuple[Any, Any]:
    """Two unpatched models in evaluation mode; every parameter random, so that each one matters."""
    arguments = SIZES | arguments
    generator = torch.Generator().manual_seed(0)
    model_a = torch_models.VisionTransformer(num_classes=7, **arguments)
    with torch.no_grad():
        for name, p in model_a.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise)
    model_b = paddle_models.VisionTransformer(class_num=7, qkv_bias=True, epsilon=1e-6, **arguments)
    model_a.to(getattr(torch, dtype)).eval()
    model_b.to(dtype=dtype)
    model_b.eval()
    parity.transfer_weights(model_a, model_b)
    return model_a, model_b


def patched_pair(dtype: str = "float64", **arguments: Any) -> tuple[Any, Any]:
    model_a, model_b = pair(dtype, **arguments)
    tomecore.adapters.torch.apply_patch(model_a, trace_source=True)
    tomecore.adapters.paddle.apply_patch(model_b, trace_source=True)
    return model_a, model_b


def images(count: int, size: int = 56) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, size, size))
