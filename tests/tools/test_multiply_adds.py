"""Multiply-adds counted from the layers, on tomecore's own models; other families: integration."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters import Spec
from tomecore.adapters.engine.count import StandIn
from tomecore.errors import ArgumentValueError, NotPatchedError, UnsupportedModelError
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic, arithmetic_of, plan_table

VIT_B = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
SMALL = VIT_B | {"img_size": 64, "embed_dim": 96, "depth": 3}


@pytest.fixture(scope="module")
def vit_b() -> Any:
    with torch.device("meta"):
        model = torch_models.VisionTransformer(**VIT_B)
    return tomecore.adapters.torch.apply_patch(model)


def small() -> Any:
    return tomecore.adapters.torch.apply_patch(torch_models.VisionTransformer(**SMALL).eval())


@pytest.mark.parametrize(
    ("r", "limit"), [(8, 1.34), (13, 1.69), (16, 2.00), ((16, -1), 3.00)], ids=str
)
def test_limit_of_vit_b(vit_b: Any, r: Any, limit: float) -> None:
    assert vit_b.tome.arithmetic.limit(197, r) == pytest.approx(limit, abs=0.005)


def test_multiply_adds_of_vit_b_are_the_published_ones(vit_b: Any) -> None:
    assert arithmetic_of(vit_b).multiply_adds(197, 0) == pytest.approx(17.56e9, rel=0.005)


def test_by_hand() -> None:
    """Projections see what enters, the MLP what the merge leaves; tables and norms are nothing."""
    found = arithmetic_of(small())
    assert found.layers == (LayerArithmetic(4 * 96 * 96, 8 * 96 * 96, 96),) * 3
    assert (found.per_patch, found.per_token) == (3 * 16 * 16 * 96, 0)
    assert found.once == 96 * torch_models.VisionTransformer(**SMALL).head.out_features
    first = 17 * 4 * 96 * 96 + 2 * 17 * 17 * 96 + 13 * 8 * 96 * 96
    assert found.per_layer(17, [4]) == [
        first,
        13 * 12 * 96 * 96 + 2 * 13 * 13 * 96,
        13 * 12 * 96 * 96 + 2 * 13 * 13 * 96,
    ]
    outside = 16 * found.per_patch + found.once
    assert found.multiply_adds(17, [4]) == sum(found.per_layer(17, [4])) + outside


def test_they_match_a_flop_counter() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = small()
    # The plain kernel: counters of some torch versions do not see the fused one.
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), math, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64))
    assert arithmetic_of(model).multiply_adds(17, 0) == counter.get_total_flops() / 2


def test_both_frameworks_count_alike() -> None:
    sizes = VIT_B | {"embed_dim": 48, "depth": 4, "num_heads": 4}
    a = tomecore.adapters.torch.apply_patch(torch_models.VisionTransformer(**sizes))
    b = tomecore.adapters.paddle.apply_patch(
        paddle_models.VisionTransformer(qkv_bias=True, **sizes)
    )
    assert a.tome.arithmetic == b.tome.arithmetic


def test_nothing_runs_and_nothing_changes() -> None:
    """Neither hooks of the user, nor the weights, nor the mode of the model, nor the random numbers."""
    model, called = small().train(), []
    for module in model.modules():
        module.register_forward_hook(lambda *args: called.append(args))
    state = torch.random.get_rng_state()
    arithmetic_of(model)
    assert called == []
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(tomecore.errors.NoForwardError):
        model.tome.tokens  # noqa: B018


def test_it_does_not_hold_the_model() -> None:
    found = arithmetic_of(small())
    assert pickle.loads(pickle.dumps(found)) == found
    assert len(pickle.dumps(found)) < 2000
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.once = 0  # type: ignore[misc]


class Sequence(torch.nn.Module):
    """A tower of blocks with a feed half of many kinds, of which only ``mlp`` and ``own`` count."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(3, 8, 4, 4)
        self.blocks = torch.nn.ModuleList([OfLists() for _ in range(2)])


class OfLists(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.Linear(8, 8)
        self.relative_position_bias_table = torch.nn.Parameter(torch.zeros(49, 8))
        self.own = torch.nn.Parameter(torch.zeros(8, 5))
        self.mlps = torch.nn.ModuleList([torch.nn.Linear(8, 6), torch.nn.Linear(6, 8)])

    def forward(self, x: Any) -> Any:
        return self.behind(self.attn(x))

    def behind(self, x: Any) -> Any:
        for mlp in self.mlps:
            x = mlp(x)
        return x * self.own.sum()


def attend(host: Any, block: Any, x: Any, bias: Any, given: Any) -> Any:
    return block.attn(x), block.attn(x)


def feed(block: Any, x: Any) -> Any:
    return block.behind(x)


def broken(block: Any, x: Any) -> Any:
    return block.nothing(x)


def of_lists(feed: Any) -> Any:
    spec = Spec(
        family="of lists",
        blocks=(OfLists,),
        towers={Sequence: "blocks"},
        children={"attn": ("*",), "mlps": ("*",)},
        tensors=("own", "relative_position_bias_table"),
        attend=attend,
        feed=feed,
        prefix=lambda tower: 0,
    )
    known = list(tomecore.adapters.torch.HOST.registered)
    tomecore.adapters.torch.register(spec)
    try:
        return tomecore.adapters.torch.apply_patch(Sequence())
    finally:
        tomecore.adapters.torch.HOST.registered[:] = known


def test_a_feed_half_of_methods_lists_and_bare_parameters() -> None:
    found = arithmetic_of(of_lists(feed))
    assert found.layers == (LayerArithmetic(64, 96 + 40, 8),) * 2
    assert found.per_patch == 8 * 3 * 16


def test_without_a_feed_half_everything_comes_before_the_merge() -> None:
    assert arithmetic_of(of_lists(None)).layers == (LayerArithmetic(64 + 96 + 40, 0, 8),) * 2


def test_a_feed_half_that_cannot_be_asked_is_an_error() -> None:
    model = of_lists(broken)
    with pytest.raises(
        UnsupportedModelError, match=r"block 0 \(of lists\) cannot be counted.*AttributeE"
    ):
        arithmetic_of(model)


def test_blocks_without_weights_are_an_error() -> None:
    model = small()
    for block in model.blocks:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight = torch.nn.Parameter(module.weight.detach().flatten())
    with pytest.raises(UnsupportedModelError, match=r"block 0 .*no parameter with two axes"):
        arithmetic_of(model)


def test_a_stand_in_is_what_it_stands_for() -> None:
    block, called = OfLists(), set()
    stand_in = StandIn(tomecore.adapters.torch.HOST, block, "", called)
    assert len(stand_in.mlps) == 2
    assert stand_in.mlps[1]("tokens") == "tokens"
    assert called == {"mlps.1"}
    assert stand_in.training is False


def test_the_plan() -> None:
    model = small()
    rows = plan_table(model, 17, [4, 7, 1])
    assert [(row.layer, row.asked, row.merged, row.tokens) for row in rows] == [
        (0, 4, 4, 13),
        (1, 7, 6, 7),
        (2, 1, 1, 6),
    ]
    assert [row.clamped for row in rows] == [False, True, False]
    found = arithmetic_of(model)
    full = found.per_layer(17, 0)[0]
    assert [row.share for row in rows] == [n / full for n in found.per_layer(17, [4, 7, 1])]
    assert plan_table(found, 17, [4, 7, 1]) == rows
    assert [row.share for row in plan_table(found, 17, 0)] == [1, 1, 1]


def test_a_stem_works_at_a_finer_resolution() -> None:
    model = torch_models.VisionTransformer(**SMALL)
    model.patch_embed = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 8, 4, 4),
        torch.nn.Conv2d(8, 96, 1, 1),
    )
    tomecore.adapters.torch.apply_patch(model)
    assert arithmetic_of(model).per_patch == 64 * 3 * 4 * 9 + 4 * 8 * 16 + 8 * 96


@pytest.mark.parametrize("model", [torch.nn.Linear(1, 1), None, 3], ids=repr)
def test_what_is_not_patched_is_refused(model: Any) -> None:
    for ask in (arithmetic_of, lambda model: plan_table(model, 17, 1)):
        with pytest.raises(NotPatchedError, match=r"call apply_patch\(model\) first"):
            ask(model)


def test_bad_arguments() -> None:
    found = Arithmetic((LayerArithmetic(1, 1, 1),), 1, 1, 1, 1)
    with pytest.raises(ArgumentValueError, match="`num_tokens` must be an integer of at least 1"):
        found.multiply_adds(0, 0)
    with pytest.raises(ArgumentValueError, match="2 numbers for a model of 1 layers"):
        found.limit(17, [1, 1])
