"""Other families of timm, in addition to the laws: readers of layers, checkpointing, dropped patches."""

from __future__ import annotations

import pytest
import timm
import torch
from adapters.test_gradients import assert_same
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit

from tomecore.adapters import torch as tome
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.of_timm import MORE, timm_model

KINDS = pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
R = [8, 0, 5, 20]


@KINDS
@torch.no_grad()
def test_readers_of_layers_see_all_positions(case):
    model, images = case.model(), case.tensors(2)
    features, layers = model.forward_features(images), model.forward_intermediates(images)
    tome.apply_patch(model, r=R)
    assert model.forward_features(images).shape == features.shape
    final, grids = model.forward_intermediates(images)
    assert final.shape == layers[0].shape
    for got, want in zip(grids, layers[1], strict=True):
        assert got.shape == want.shape
        assert not torch.equal(got, want)
    assert model.tome.tokens == [n + case.prefix for n in (56, 56, 51, 31)]
    tokens = grids[1].flatten(2).transpose(1, 2)
    assert all(len(sample.unique(dim=0)) == 56 for sample in tokens)
    expected = model(images)
    model.forward_intermediates(images)
    assert torch.equal(model(images), expected)


@KINDS
def test_set_grad_checkpointing(case):
    fw, model, images = case.fw, case.patched(r=8), case.tensors()
    model.train(not case.drops)
    losses = {
        "output": lambda: model(images).square().sum(),
        "layers": lambda: sum(
            x.square().sum() for x in model.forward_intermediates(images, intermediates_only=True)
        ),
    }
    expected = {name: fw.gradients(model, loss) for name, loss in losses.items()}
    model.set_grad_checkpointing(True)
    for name, loss in losses.items():
        assert_same(fw.gradients(model, loss), expected[name])
    loss = losses["output"]()
    model.r = 2
    assert_same(fw.gradients_of(model, loss), expected["output"])


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@KINDS
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


@pytest.mark.parametrize(
    "kind", ["eva02", "rope-mixed", "beit", "rel-pos-shared", "things", "diff-parallel"]
)
@torch.no_grad()
def test_compiled(kind):
    case = case_named(f"timm-{kind}")
    model, images = case.patched(depth=2, r=8), case.tensors()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected, rtol=0, atol=1e-11)
    torch.compiler.reset()


DROPPING = {
    "eva": timm_model(Eva, use_rot_pos_emb=True, patch_drop_rate=0.5),
    "eva-mixed": timm_model(
        Eva, use_rot_pos_emb=True, attn_type="rope", rope_type="mixed", patch_drop_rate=0.5
    ),
    "naflex": timm_model(NaFlexVit, class_token=True, rope_type="axial", patch_drop_rate=0.5),
}


@pytest.mark.parametrize("build", DROPPING.values(), ids=DROPPING)
def test_dropped_patches_shorten_the_run(build):
    case = case_named("timm-eva")
    model = case.fw.prepare(build(img_size=32, depth=4))
    tome.apply_patch(model, r=4, trace_source=True).train()
    assert model(case.tensors()).isfinite().all()
    assert model.tome.tokens == [29, 25, 21, 17]
    assert model.tome.source.shape == (3, 33)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_images_of_other_sizes():
    case = case_named("timm-eva")
    build = timm_model(Eva, use_rot_pos_emb=True, dynamic_img_size=True)
    model = tome.apply_patch(case.fw.prepare(build(img_size=32, depth=4)), r=8, trace_source=True)
    for height, width in ((16, 24), (32, 32), (40, 12)):
        n0 = 1 + height * width // 16
        model(torch.randn(2, 3, height, width, dtype=torch.float64))
        assert model.tome.source.shape == (2, n0)
        assert model.tome.sizes.sum(1).tolist() == [n0, n0]


def test_position_biases_that_do_not_fit_are_named():
    case = case_named("timm-beit-shared")
    model = case.patched(r=8)
    bias = torch.zeros(4, 33, 33, dtype=torch.float64)
    x = torch.zeros(2, 65, 32, dtype=torch.float64)
    x = model.blocks[0](x)
    with pytest.raises(UnsupportedModelError, match="does not describe the 65 tokens"):
        model.blocks[1](x, shared_rel_pos_bias=bias)


@torch.no_grad()
def test_hooks_on_a_replaced_attention_are_refused():
    case = case_named("timm-beit")
    model = case.patched(r=8)
    model.blocks[1].attn.register_forward_hook(lambda m, a, y: None)
    with pytest.raises(
        UnsupportedModelError, match="does not call; remove the hook, or hook the modules"
    ):
        model(case.tensors())


@torch.no_grad()
def test_features_only_backbones():
    model = timm.create_model(
        "vit_small_patch16_dinov3", depth=3, features_only=True, img_size=64, out_indices=(0, 2)
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    tome.apply_patch(model, r=4)
    for got, want in zip(model(images), before, strict=True):
        assert got.shape == want.shape
    assert model.tome.tokens == [17, 13, 9]
