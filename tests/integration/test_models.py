"""The plain ViTs against the libraries whose parameter names they carry, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch
from paddleclas.ppcls.arch.backbone.model_zoo import (
    distilled_vision_transformer,
    vision_transformer,
)
from safetensors.numpy import save_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from tomecore.frameworks import predict, to_numpy
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32))


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (VisionTransformer, {}),
        (VisionTransformerDistilled, {"distilled": True}),
        (VisionTransformer, {"global_pool": "avg"}),
        (VisionTransformer, {"global_pool": "avg", "class_token": False}),
        (VisionTransformer, {"qkv_bias": False, "drop_path_rate": 0.2}),
    ],
    ids=["class token", "distilled", "average", "average without class token", "no bias"],
)
def test_torch_against_timm(cls: Any, arguments: dict[str, Any], images: np.ndarray) -> None:
    theirs = {name: value for name, value in arguments.items() if name != "distilled"}
    original = cls(num_classes=7, **TINY, **theirs).double()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(std=0.2)
    ours = torch_models.VisionTransformer(num_classes=7, **TINY, **arguments).double()
    ours.load_state_dict(original.state_dict())
    np.testing.assert_allclose(predict(ours, images), predict(original, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (vision_transformer.VisionTransformer, {}),
        (vision_transformer.VisionTransformer, {"qk_scale": 0.1, "qkv_bias": True}),
        (distilled_vision_transformer.DistilledVisionTransformer, {"distilled": True}),
    ],
    ids=["class token", "scale", "distilled"],
)
def test_paddle_against_paddleclas(
    cls: Any, arguments: dict[str, Any], images: np.ndarray, tmp_path: Any
) -> None:
    theirs = {name: value for name, value in arguments.items() if name != "distilled"}
    original = cls(class_num=7, **TINY, **theirs)
    for parameter in original.parameters():
        parameter.set_value(0.2 * paddle.randn(parameter.shape))
    path = str(tmp_path / "weights.pdparams")
    paddle.save(original.state_dict(), path)
    ours = paddle_models.VisionTransformer(class_num=7, **TINY, **arguments)
    paddle_models.load_weights(ours, path)
    for model in (original, ours):
        model.to(dtype="float64")
    np.testing.assert_allclose(predict(ours, images), predict(original, images), rtol=0, atol=1e-12)


def test_one_safetensors_file_for_both(images: np.ndarray, tmp_path: Any) -> None:
    model_a = torch_models.VisionTransformer(num_classes=7, **TINY)
    path = tmp_path / "weights.safetensors"
    save_file({n: to_numpy(v) for n, v in model_a.state_dict().items()}, path)
    other = torch_models.load_weights(torch_models.VisionTransformer(num_classes=7, **TINY), path)
    model_b = paddle_models.VisionTransformer(class_num=7, qkv_bias=True, epsilon=1e-6, **TINY)
    paddle_models.load_weights(model_b, path)
    expected = predict(model_a, images)
    np.testing.assert_array_equal(predict(other, images), expected)
    np.testing.assert_allclose(predict(model_b, images), expected, rtol=0, atol=1e-5)
