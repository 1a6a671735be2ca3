"""Features of timm only: readers of intermediate layers, its own checkpointing, its other models."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from adapters import explicit
from adapters.test_gradients import assert_same
from timm.layers import set_reentrant_ckpt
from timm.models.vision_transformer import Block, ResPostBlock

from tomecore.adapters import torch as tome
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.of_timm import PLAIN as TIMM
from vits.of_timm import timm_model

PLAIN = case_named("timm-plain")
READ = [case_named(name) for name in ("timm-plain", "timm-registers", "timm-average", "timm-map")]


def layers_of(case, model, images, amounts):
    """Independent of the engine: each layer's merged tokens, given back to all N positions."""
    tokens = case.fw.numpy(case.fw.tokens(model, images))
    layers = explicit.run(case.fw, model.blocks, tokens, amounts, protected=case.prefix)
    return [torch.from_numpy(layer.restored) for layer in layers]


@pytest.fixture(params=READ, ids=lambda case: case.name)
def read(request):
    """(case, patched model, images, tokens of every layer) of one kind of model."""
    case = request.param
    model, images = case.model(), case.images(2)
    layers = layers_of(case, model, images, [8, 0, 5, 20])
    return case, tome.apply_patch(model, r=[8, 0, 5, 20]), torch.from_numpy(images), layers


def close(got, expected):
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


def as_grid(tokens, prefix):
    return tokens[:, prefix:].transpose(1, 2).reshape(tokens.shape[0], -1, 8, 8)


@pytest.mark.parametrize("norm", [False, True], ids=["raw", "normed"])
@torch.no_grad()
def test_every_layer_keeps_all_positions(read, norm):
    case, model, images, layers = read
    expected = [model.norm(x) if norm else x for x in layers]
    final, grids = model.forward_intermediates(images, norm=norm)
    close(final, model.norm(layers[-1]))
    for got, want in zip(grids, expected, strict=True):
        close(got, as_grid(want, case.prefix))
    _, rows = model.forward_intermediates(images, norm=norm, output_fmt="NLC")
    for got, want in zip(rows, expected, strict=True):
        close(got, want[:, case.prefix :])
    assert model.tome.tokens == [n + case.prefix for n in (56, 56, 51, 31)]
    assert torch.equal(model.tome.sizes.sum(1), torch.full((2,), 64.0 + case.prefix))


@torch.no_grad()
def test_chosen_layers_and_prefix_tokens(read):
    case, model, images, layers = read
    got = model.forward_intermediates(
        images,
        indices=[0, 2],
        stop_early=True,
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    for pair, want in zip(got, [layers[0], layers[2]], strict=True):
        patches, prefix = pair if case.prefix else (pair, want[:, :0])
        close(torch.cat([prefix, patches], dim=1), want)
    (last,) = model.get_intermediate_layers(images, n=1, reshape=True, norm=True)
    close(last, as_grid(model.norm(layers[-1]), case.prefix))


@torch.no_grad()
def test_reading_layers_changes_nothing_else(read):
    case, model, images, _ = read
    expected = model(images)
    model.forward_intermediates(images)
    assert torch.equal(model(images), expected)
    with pytest.raises(TypeError):
        model.forward_intermediates(images, wrong=1)
    assert torch.equal(model(images), expected)
    assert model.forward_features(images).shape == (2, case.num_tokens(), 32)
    model.r = 0
    patched = model.forward_intermediates(images, intermediates_only=True)
    tome.remove_patch(model)
    for got, want in zip(
        patched, model.forward_intermediates(images, intermediates_only=True), strict=True
    ):
        assert torch.equal(got, want)


@torch.no_grad()
def test_layers_are_whole_without_restore_too(read):
    case, model, images, layers = read
    if not case.pooled:
        tome.apply_patch(model, restore=False)
        got = model.forward_intermediates(images, intermediates_only=True, output_fmt="NLC")
        close(got[-1], layers[-1][:, case.prefix :])
        assert model.forward_features(images).shape[1] == model.tome.tokens[-1]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.name)
def test_set_grad_checkpointing(case, reentrant):
    fw, model, images = case.fw, case.patched(r=8), case.tensors()
    model.train(not case.drops)
    every = {
        "output": lambda: model(images).square().sum(),
        "layers": lambda: sum(
            x.square().sum() for x in model.forward_intermediates(images, intermediates_only=True)
        ),
    }
    expected = {name: fw.gradients(model, loss) for name, loss in every.items()}
    set_reentrant_ckpt(reentrant)
    try:
        model.set_grad_checkpointing(True)
        for name, loss in every.items():
            assert_same(fw.gradients(model, loss), expected[name])
        loss = every["output"]()
        model.r = 2
        assert_same(fw.gradients_of(model, loss), expected["output"])
    finally:
        set_reentrant_ckpt(False)


def test_causal_attention_is_refused_while_merging():
    model, images = PLAIN.patched(r=8), PLAIN.tensors()
    with pytest.raises(UnsupportedModelError, match="called with is_causal=, which describes all"):
        model(images, is_causal=True)
    model.r = 0
    assert not torch.allclose(model(images, is_causal=True), model(images))


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_images_of_other_sizes():
    case = case_named("timm-dynamic")
    model = case.patched(r=8, trace_source=True)
    for height, width in ((16, 24), (32, 32), (40, 12)):
        n0 = 1 + height * width // 16
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        model(images)
        assert model.tome.source.shape == (2, n0)
        assert model.tome.sizes.sum(1).tolist() == [n0, n0]
        grids = model.forward_intermediates(images, intermediates_only=True)
        assert grids[1].shape == (2, 32, height // 4, width // 4)


def test_dropped_patches_shorten_the_run():
    build = timm_model(patch_drop_rate=0.5)
    model = PLAIN.fw.prepare(build(img_size=32, depth=4))
    tome.apply_patch(model, r=4, trace_source=True).train()
    model(PLAIN.tensors())
    assert model.tome.tokens == [29, 25, 21, 17]
    assert model.tome.source.shape == (3, 33)


@pytest.mark.parametrize("name", ["registers", "layer-scale", "map", "qk-norm"])
@torch.no_grad()
def test_compiled(name):
    case = case_named(f"timm-{name}")
    model, images = case.patched(depth=2, r=8), case.tensors()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-12)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("case", TIMM, ids=lambda case: case.name)
@torch.no_grad()
def test_half_weights_and_autocast(case):
    model, images = case.patched(r=16), case.tensors()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.float()(images.float())
    half = model.bfloat16()(images.bfloat16())
    for output in (mixed, half):
        assert output.isfinite().all()
        assert output.shape == exact.shape
    assert model.tome.sizes.sum(1).tolist() == [case.num_tokens()] * 3


def alternating(*args, depth, **kwargs):
    kind = ResPostBlock if depth % 2 else Block
    return kind(*args, depth=depth, **kwargs)


OTHERS = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)},
        r"timm\.models\.swin_transformer\..*has a window_size \(.*SwinTransformerBlock\): it attends",
    ),
    "resnet": ("resnet18", {}, r"timm\.models\.resnet\.ResNet.*holds no vision transformer that"),
    "windows in a ViT": (
        "samvit_base_patch16",
        {"depth": 2, "embed_dim": 32, "num_heads": 2},
        r"timm\.models\.vision_transformer_sam\..*has a window_size",
    ),
    "hierarchy": (
        "hiera_tiny_224",
        {"embed_dim": 8, "stages": (1, 1, 1, 1)},
        r"timm\.models\.hiera\.Hiera.*has a window_size",
    ),
    "two kinds of blocks": (
        "vit_tiny_patch16_224",
        {"depth": 4, "block_fn": alternating},
        r"model\.blocks\[1\] is a .*ResPostBlock among blocks of timm VisionTransformer; .*of one family",
    ),
}


@pytest.mark.parametrize(("name", "arguments", "text"), OTHERS.values(), ids=OTHERS)
def test_other_models_are_refused_and_untouched(name, arguments, text):
    model = timm.create_model(name, **arguments)
    before = PLAIN.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(model)
    assert PLAIN.fw.fingerprint(model) == before


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_a_published_architecture_by_name():
    model = timm.create_model("deit3_small_patch16_224", depth=2, num_classes=5).eval()
    images = torch.randn(2, 3, 224, 224)
    before = model(images)
    tome.apply_patch(model)
    assert torch.equal(model(images), before)
    model.r = 16
    assert np.isfinite(model(images).numpy()).all()
    assert model.tome.tokens == [181, 165]
