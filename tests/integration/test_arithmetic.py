"""The multiply-adds counted from the layers, against torch's counter of what runs, in real models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from vits.cases import MORE, PLAIN, case_named

import tomecore.adapters.torch as tome
from tomecore.schedule import Ratio
from tomecore.schedule.arithmetic import arithmetic_of

torch.set_num_threads(1)

#: Families in which something runs that is not counted, and how much of so small a model it is, at most.
NOT_COUNTED = {
    "timm-rel-pos": (0.16, "a small network makes position biases, the same at any r"),
    "timm-rel-pos-post-norm": (0.16, "a small network makes position biases, the same at any r"),
    "timm-gemma4": (0.5, "positions are looked up by a product with one-hot rows"),
    "transformers-siglip2": (
        0.065,
        "from 5.24 on positions are resized by a product: 0.2 % at 224",
    ),
    "open_clip-all-tokens": (0.02, "the scores of pooling by attention"),
    "open_clip-cascade": (0.12, "the scores of pooling by attention, twice"),
    "open_clip-whole": (0.15, "the text tower"),
}


def counted(model: Any, images: torch.Tensor) -> float:
    """Multiply-adds that ran, without those of matching, which are not part of the limit."""
    matching = []

    def matched(layer: int, key: torch.Tensor, *rest: Any) -> None:
        batch, tokens, width = key.shape
        prefix = model.tome.protected
        even = (tokens + 1) // 2 - (prefix + 1) // 2
        odd = tokens // 2 - prefix // 2
        matching.append(batch * even * odd * width)

    config = model.tome._config
    config.observers = (matched,)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see it
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        config.observers = ()
    return (counter.get_total_flops() / 2 - sum(matching)) / len(images)


def compare(model: Any, images: torch.Tensor, missing: float = 0.0) -> None:
    images = (
        images.requires_grad_()
    )  # the counter of some versions trips over views without gradients
    for r in (0, 8, [0, 5]):
        model.r = r
        found = counted(model, images)
        expected = arithmetic_of(model).multiply_adds(model.tome._run().num_tokens, r)
        assert (1 - missing) * found * 0.997 <= expected <= found * 1.003


@pytest.mark.parametrize("name", [case.name for case in [*PLAIN, *MORE] if case.fw.name == "torch"])
def test_every_family_of_torch(name: str) -> None:
    case = case_named(name)
    missing, _ = NOT_COUNTED.get(name, (0.0, ""))
    compare(case.patched(depth=3), case.tensors(2), missing)


def timm_vit(**fixed: Any) -> Callable[[], Any]:
    sizes = {"embed_dim": 192, "depth": 3, "num_heads": 3, "num_classes": 1000}
    return lambda: VisionTransformer(**{**sizes, **fixed})


REAL = {
    "vit-small": timm_vit(embed_dim=384, num_heads=6),
    "deit3": timm_vit(init_values=1e-6, no_embed_class=True),
    "post-norm": timm_vit(block_fn=ResPostBlock),
    "parallel": timm_vit(block_fn=ParallelScalingBlock),
    "parallel-things": timm_vit(block_fn=ParallelThingsBlock),
    "map": timm_vit(global_pool="map", class_token=False),
    "eva02": lambda: Eva(
        img_size=224, embed_dim=192, depth=3, num_heads=3, mlp_ratio=8 / 3, swiglu_mlp=True
    ),
}


@pytest.mark.parametrize("build", REAL.values(), ids=REAL)
def test_at_224_pixels(build: Callable[[], Any]) -> None:
    compare(tome.apply_patch(build().eval()), torch.zeros(1, 3, 224, 224))


def test_a_limit_is_the_ratio_of_what_runs() -> None:
    model = tome.apply_patch(timm_vit()().eval())
    images = torch.zeros(1, 3, 224, 224)
    full = counted(model, images)
    model.r = 30
    assert model.tome.arithmetic.limit(197, 30) == pytest.approx(full / counted(model, images))


def test_paddles_are_those_of_their_twins() -> None:
    expected = arithmetic_of(case_named("timm-plain").patched(depth=3))
    for name in ("paddleclas-plain", "ppim-plain"):
        assert arithmetic_of(case_named(name).patched(depth=3)) == expected


@pytest.mark.parametrize(
    "name", [case.name for case in [*PLAIN, *MORE] if case.fw.name == "paddle"]
)
def test_every_family_of_paddle_can_be_counted(name: str) -> None:
    """Each block is four squares of its width before the merge, and an MLP half after it."""
    case = case_named(name)
    found = arithmetic_of(case.patched(depth=3))
    width = found.layers[0].width
    for layer in found.layers:
        assert layer.width == width
        assert layer.attention == 4 * width**2
        assert layer.feed >= 2 * width**2
    assert found.per_patch >= 3 * 16 * width  # more where a decoder embeds them again


def sites(share: float) -> list[int]:
    """The same share of the patches merges in blocks 3, 6 and 9."""
    patches, wanted = 196, [0] * 12
    for block in (3, 6, 9):
        wanted[block] = patches - round(patches * (1 - share))
        patches -= wanted[block]
    return wanted


#: tokens that leave each block of DeiT-S, in DiffRate's table of 2.9 G
DIFFRATE = (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3)
#: schedules of DeiT-S at 224, and their published multiply-adds in G
PUBLISHED = {
    "unpatched": (0, 4.60),
    "ToMe 8": (8, 3.42),
    "ToMeCIS 11": (11, 2.99),
    "ToMe 13": (13, 2.70),
    "ToMe 16": (16, 2.29),
    "ratio 0.93": (Ratio(0.93), 2.99),
    "ratio 0.91": (Ratio(0.91), 2.68),
    "ratio 0.88": (Ratio(0.88), 2.29),
    "PPT": ([0, 0, 0, 50, 0, 0, 50, 0, 0, 50], 2.944),
    "MCTF-Fast": (sites(0.35), 2.80),
}


@pytest.fixture(scope="module")
def deit_small() -> Any:
    model = timm.create_model("vit_small_patch16_224")
    return arithmetic_of(tome.apply_patch(model.eval()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules(deit_small: Any, name: str) -> None:
    r, expected = PUBLISHED[name]
    assert deit_small.multiply_adds(197, r) / 1e9 == pytest.approx(expected, rel=0.01)


def test_the_schedule_of_diffrate(deit_small: Any) -> None:
    """Its last block leaves 3 of 56 tokens. A layer merges at most half, so here it leaves 29."""
    entering = (197, *DIFFRATE[:-1])
    blocks = zip(deit_small.layers, entering, DIFFRATE, strict=True)
    outside = 196 * deit_small.per_patch + deit_small.once
    exact = sum(layer.multiply_adds(before, after) for layer, before, after in blocks) + outside
    assert exact / 1e9 == pytest.approx(2.905, rel=0.001)
    wanted = [before - after for before, after in zip(entering, DIFFRATE, strict=True)]
    assert deit_small.merged(197, wanted)[-1] == 56 - 29
    assert deit_small.multiply_adds(197, wanted) / 1e9 == pytest.approx(2.936, rel=0.001)
