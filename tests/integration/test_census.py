"""``benchmarks/census.py`` on a handful of architectures, and that it can tell right from wrong."""

from __future__ import annotations

import pytest
import torch
from scripts import load_script

from tomecore.adapters import torch as tome

EXPECTED = {
    "vit_small_patch14_reg4_dinov2.lvd142m": "right",
    "deit_tiny_distilled_patch16_224.fb_in1k": "right",
    "vit_small_patch16_dinov3.lvd1689m": "right",
    "vit_base_patch16_sapiens2.fb": "right",
    "beitv2_base_patch16_224.in1k_ft_in22k": "right",
    "vit_relpos_small_patch16_224.sw_in1k": "right",
    "naflexvit_base_patch16_gap.e300_s576_in1k": "right",
    "swin_tiny_patch4_window7_224.ms_in1k": "refused",
    "resnet18.a1_in1k": "refused",
}


@pytest.fixture(scope="module")
def census():
    return load_script("benchmarks/census.py")


def test_what_is_counted(census):
    """The number the documentation quotes; another timm may count otherwise."""
    counted = census.tags(census.PLAIN)
    first = [tag for tag in counted if census.module_of(tag) in ("vision_transformer", "deit")]
    assert (len(first), len(counted)) == (333, 498)
    assert not set(counted) & set(census.tags(None))


def test_verdicts(census):
    cells = census.census(list(EXPECTED), report=lambda line: None)
    assert {cell["tag"]: cell["verdict"] for cell in cells} == EXPECTED
    text = census.table(cells)
    assert "| all | 9 | 7 | 2 | 0 |" in text
    assert "**refused**, 1 checkpoints: the model has a window_size" in text


def test_a_half_that_is_not_the_blocks_own_is_wrong(census, monkeypatch):
    (vit,) = [spec for spec in tome.SPECS if spec.family == "timm VisionTransformer"]
    feed = vit.feed
    model = census.small("vit_tiny_patch16_224")
    monkeypatch.setattr(vit, "feed", lambda block, x: feed(block, x) * (1 + 1e-12))
    assert census.verdict(model)[0] == "wrong"
    assert census.verdict(model)[1].startswith("Wrong: halves: differ by")


def test_a_model_that_merges_nothing_is_wrong(census, monkeypatch):
    model = census.small("vit_tiny_patch16_224")
    monkeypatch.setattr(census, "SCHEDULE", [0] * census.DEPTH)
    state, why = census.verdict(model)
    assert (state, why.partition(":")[0]) == ("wrong", "Wrong")


def test_an_error_that_is_no_refusal_is_wrong(census, monkeypatch):
    def broken(model, **settings):
        raise TypeError("somebody else's")

    monkeypatch.setattr(tome, "apply_patch", broken)
    model = census.small("vit_tiny_patch16_224")
    assert census.verdict(model) == ("wrong", "TypeError: somebody else's")


def test_models_alike_share_a_signature(census):
    one, same, other = (
        census.signature(census.small(tag))
        for tag in ("vit_small_patch16_224", "vit_base_patch16_224", "vit_base_patch32_224")
    )
    assert one == same != other


def test_random_parameters_leave_nothing_neutral(census):
    model = census.small("deit3_small_patch16_224.fb_in1k")
    census.randomise(model)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float64
        assert float(parameter.detach().std()) > 0.01
