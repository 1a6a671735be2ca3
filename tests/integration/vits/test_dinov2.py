"""The official DINOv2 only: outputs by name, its readers of layers, its ways of training."""

from __future__ import annotations

import pytest
import torch
from adapters.frameworks import TORCH as FW
from dinov2.layers.attention import Attention

from tomecore.adapters import torch as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import UnsupportedModelError
from vits.of_dinov2 import MORE, dinov2_model

PLAIN = MORE[0]


@torch.no_grad()
def test_all_outputs_keep_their_shapes():
    model, images = PLAIN.patched(), PLAIN.tensors()
    before = model(images, is_training=True)
    model.r = 8
    after = model(images, is_training=True)
    for name in ("x_norm_clstoken", "x_norm_patchtokens", "x_prenorm"):
        assert after[name].shape == before[name].shape
        assert not torch.allclose(after[name], before[name])
    short = PLAIN.patched(r=8, restore=False)(images, is_training=True)
    assert short["x_norm_patchtokens"].shape == (3, 32, 32)
    torch.testing.assert_close(
        short["x_norm_clstoken"], after["x_norm_clstoken"], rtol=0, atol=1e-12
    )


@torch.no_grad()
def test_intermediate_layers_keep_all_positions():
    model, images = PLAIN.patched(), PLAIN.tensors()
    before = model.get_intermediate_layers(images, n=4, reshape=True)
    tome.apply_patch(model)
    same = zip(model.get_intermediate_layers(images, n=4, reshape=True), before, strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    model.r = [8, 0, 5, 20]
    layers = model.get_intermediate_layers(images, n=[0, 1, 2, 3], norm=False)
    assert [x.shape for x in layers] == [(3, 64, 32)] * 4
    assert [x[0].unique(dim=0).shape[0] for x in layers] == [56, 56, 51, 31]
    (last,) = model.get_intermediate_layers(images, reshape=True)
    assert last.shape == (3, 32, 8, 8)


@pytest.mark.parametrize("rate", [0.0, 0.08])
def test_both_halves_share_one_drop_path(rate):
    model = FW.prepare(dinov2_model(drop_path_rate=rate, drop_path_uniform=True)(32, 4)).train()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x, dropped = torch.randn(16, 65, 32, dtype=torch.float64), 0
    for number, block in enumerate(blocks):
        FW.seed(number)
        whole = block(x)
        FW.seed(number)
        y, _ = spec.attend(tome.HOST, block, x, None, {})
        torch.testing.assert_close(spec.feed(block, y), whole, rtol=0, atol=1e-11)
        dropped += int((y == x).all(dim=(1, 2)).sum())
    assert (dropped > 0) is (rate > 0)


def test_training_that_drops_images_is_refused():
    model = tome.apply_patch(FW.prepare(dinov2_model(drop_path_rate=0.4)(32, 4))).train()
    images = PLAIN.tensors()
    assert model(images).isfinite().all()
    model.r = 8
    with pytest.raises(UnsupportedModelError, match="leaves out whole images of the batch"):
        model(images)
    model.eval()
    assert model(images).isfinite().all()


def test_chunks_and_dropped_attention_are_refused():
    chunked = dinov2_model(block_chunks=1)(32, 4)
    with pytest.raises(
        UnsupportedModelError, match=r"blocks\[0\] is a .*BlockChunk, whose forward"
    ):
        tome.apply_patch(chunked)
    dropping = PLAIN.model()
    dropping.blocks[1].attn = Attention(32, 4, attn_drop=0.1)
    with pytest.raises(
        UnsupportedModelError, match=r"blocks\[1\]: its attention has attn_drop=0.1"
    ):
        tome.apply_patch(dropping)


def test_lists_of_crops_are_refused():
    model, images = PLAIN.patched(r=8), PLAIN.tensors()
    with pytest.raises(UnsupportedModelError, match="called with a list of images"):
        model([images, images], masks=[None, None])
    with pytest.raises(UnsupportedModelError, match="got a list in place of tokens"):
        model.blocks[1]([images])
    model.r = 0
    with pytest.raises(AssertionError, match="xFormers"):  # the library's own forward runs
        model([images, images], masks=[None, None])


def test_hooks_on_the_attention_are_refused():
    model = PLAIN.patched(r=8)
    model.blocks[1].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="hook the modules inside it"):
        model(PLAIN.tensors())
