"""Arguments of the plain ViTs: each bad one is named, with its value and what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tomecore.frameworks import predict
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(params=[torch_models, paddle_models], ids=["torch", "paddle"])
def build(request: pytest.FixtureRequest) -> Any:
    return lambda **arguments: request.param.VisionTransformer(**TINY | arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"depth": 0}, "`depth` must be an integer of at least 1; got 0"),
        ({"num_heads": 3}, "`embed_dim` must be a multiple of `num_heads`, 3; got 16"),
        ({"img_size": "16"}, r"`img_size` must be an integer of .* or two of them .*got '16'"),
        ({"patch_size": 32}, "`patch_size` must be at most `img_size`, 16; got 32"),
        ({"mlp_ratio": 0.0}, "`mlp_ratio` must be above 0; got 0.0"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be at least 0 and below 1; got 1.0"),
        ({"global_pool": "max"}, "`global_pool` must be 'token' or 'avg'; got 'max'"),
        ({"class_token": False}, "`class_token=False` needs `global_pool='avg'`"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_bad_arguments(build: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(**arguments)


def test_images_of_another_size(build: Any) -> None:
    with pytest.raises(ValueError, match=r"images are \(8, 8\) pixels, the model takes \(16, 16\)"):
        predict(build(), np.zeros((1, 3, 8, 8), np.float32))


def test_images_need_not_be_square(build: Any) -> None:
    model = build(img_size=(16, 8), patch_size=(4, 2))
    assert predict(model, np.zeros((1, 3, 16, 8), np.float32)).shape == (1, 1000)
