"""The limits of measurements. Nothing here is timed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tomecore.adapters.torch
from tomecore import benchmark
from tomecore.errors import NotPatchedError
from tomecore.models import torch as torch_models


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
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"  # a warm-up; each round begins with another
    assert [set(seconds) for seconds in rounds] == [{"a", "b"}] * 3
    rounds = [{"a": 2.0, "b": 1.0}, {"a": 30.0, "b": 10.0}, {"a": 2.5, "b": 1.0}]
    assert benchmark.median_ratio(rounds, "a", "b") == 2.5
    assert benchmark.quartiles(rounds, "a", "b") == (2.25, 2.75)
    assert benchmark.quartiles(rounds[:1], "a", "b") == (2.0, 2.0)


def test_unpatched_model_is_refused() -> None:
    with pytest.raises(NotPatchedError, match="call apply_patch first"):
        benchmark.free_drop(torch.nn.Linear(1, 1))
