"""The limits that measurements stand beside. Nothing here is timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import benchmark
from tomecore.errors import NotPatchedError
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models

VIT_B = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}


@pytest.fixture(scope="module")
def vit_b() -> Any:
    with torch.device("meta"):
        model = torch_models.VisionTransformer(**VIT_B)
    return tomecore.adapters.torch.apply_patch(model)


@pytest.mark.parametrize(
    ("r", "limit"), [(8, 1.34), (13, 1.69), (16, 2.00), ((16, -1), 3.00)], ids=str
)
def test_arithmetic_limit_of_vit_b(vit_b: Any, r: Any, limit: float) -> None:
    assert benchmark.arithmetic_limit(vit_b, 197, r) == pytest.approx(limit, abs=0.005)


def test_multiply_adds_of_vit_b_are_the_published_ones(vit_b: Any) -> None:
    assert benchmark.multiply_adds(vit_b, 197, 0) == pytest.approx(17.56e9, rel=0.005)


def test_multiply_adds_match_a_flop_counter() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = torch_models.VisionTransformer(**VIT_B | {"img_size": 64, "embed_dim": 96, "depth": 3})
    model = tomecore.adapters.torch.apply_patch(model.eval(), r=4)
    # The plain kernel: counters of some torch versions know nothing of the fused one.
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    counted = counter.get_total_flops() / 2
    assert benchmark.multiply_adds(model, 17, 4) == pytest.approx(counted, rel=0.01)


def test_both_frameworks_have_the_same_limit() -> None:
    small = VIT_B | {"embed_dim": 48, "depth": 4, "num_heads": 4}
    a = tomecore.adapters.torch.apply_patch(torch_models.VisionTransformer(**small))
    b = tomecore.adapters.paddle.apply_patch(
        paddle_models.VisionTransformer(qkv_bias=True, **small)
    )
    assert benchmark.multiply_adds(a, 197, 16) == benchmark.multiply_adds(b, 197, 16)


def test_free_drop_keeps_the_first_tokens_and_merges_nothing() -> None:
    small = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}
    model = torch_models.VisionTransformer(**small).double().eval()
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)))
    tokens = []
    hook = model.blocks[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    with torch.no_grad():
        model(x)
        hook.remove()
        (expected,) = tokens
        for block in model.blocks:  # attention over all, feed-forward over what is left
            expected = expected + block.attn(block.norm1(expected))
            expected = expected[:, : expected.shape[1] - 8]
            expected = expected + block.mlp(block.norm2(expected))
        benchmark.free_drop(tomecore.adapters.torch.apply_patch(model, r=8))
        found = model.forward_features(x)
        torch.testing.assert_close(found, model.norm(expected), rtol=0, atol=1e-13)
    assert model.tome.tokens == [57, 49, 41]


def test_interleaving_takes_turns() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    rounds = list(benchmark.interleave(calls, 3))
    assert "".join(order) == "ab" * 4  # one warm-up
    assert [set(seconds) for seconds in rounds] == [{"a", "b"}] * 3
    rounds = [{"a": 2.0, "b": 1.0}, {"a": 30.0, "b": 10.0}, {"a": 2.5, "b": 1.0}]
    assert benchmark.median_ratio(rounds, "a", "b") == 2.5


def test_unpatched_model_is_refused() -> None:
    with pytest.raises(NotPatchedError, match="call apply_patch first"):
        benchmark.multiply_adds(torch.nn.Linear(1, 1), 197, 0)
