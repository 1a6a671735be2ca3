"""Multiply-adds of a model whose last block computes only the prefix tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models
from tomecore.schedule import for_speedup
from tomecore.schedule.arithmetic import plan_table

SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 4}


def patched(framework: str, trim_last: bool = True, **more: Any) -> Any:
    if framework == "torch":
        model = torch_models.VisionTransformer(**SIZES, **more).eval()
        return tomecore.adapters.torch.apply_patch(model, trim_last=trim_last)
    found = paddle_models.VisionTransformer(qkv_bias=True, **SIZES, **more)
    return tomecore.adapters.paddle.apply_patch(found, trim_last=trim_last)


@pytest.fixture(params=["torch", "paddle"])
def trimmed(request: pytest.FixtureRequest) -> Any:
    return patched(request.param)


@pytest.fixture
def whole() -> Any:
    return patched("torch", trim_last=False)


def test_they_match_a_flop_counter() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = patched("torch", distilled=True)
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32))
    found = model.tome.arithmetic
    assert found.multiply_adds(66, 0) == counter.get_total_flops() / 2
    assert (found.rows, found.keys) == (2, 2 * 32 * 32)


def test_the_limit_is_that_over_the_unpatched_model(trimmed: Any, whole: Any) -> None:
    trimmed, whole = trimmed.tome.arithmetic, whole.tome.arithmetic
    assert trimmed.unpatched == whole
    assert whole.unpatched is whole
    for r in (0, 8, [0, 5, 3, 60]):
        limit = whole.multiply_adds(65, 0) / trimmed.multiply_adds(65, r)
        assert trimmed.limit(65, r) == limit
        assert limit > whole.limit(65, r)
    assert trimmed.multiply_adds(65, [0, 5, 3, 60]) == trimmed.multiply_adds(65, [0, 5, 3])


def test_both_frameworks_count_alike() -> None:
    assert patched("torch").tome.arithmetic == patched("paddle").tome.arithmetic


def test_the_plan(trimmed: Any) -> None:
    rows = plan_table(trimmed, 65, 8)
    assert [(row.asked, row.merged, row.tokens) for row in rows] == [
        (8, 8, 57),
        (8, 8, 49),
        (8, 8, 41),
        (0, 0, 41),
    ]
    found = trimmed.tome.arithmetic
    shares = np.array(found.per_layer(65, 8)) / found.unpatched.per_layer(65, 0)[0]
    assert [row.share for row in rows] == shares.tolist()
    assert shares[-1] < 0.2


def test_a_wish_for_speed_counts_the_trimming(trimmed: Any, whole: Any) -> None:
    found = [sum(for_speedup(model, 1.5)(4, 65, 1)[:-1]) for model in (trimmed, whole)]
    assert found[0] < found[1]
    assert trimmed.tome.arithmetic.limit(65, for_speedup(trimmed, 1.5)) >= 1.5
