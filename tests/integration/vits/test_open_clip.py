"""Features of open_clip only: text towers of the same blocks, poolers, sequence-first tokens, timm trunks."""

from __future__ import annotations

import open_clip
import pytest
import torch
from adapters.frameworks import TORCH as FW
from adapters.test_gradients import assert_same
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock

from tomecore.adapters import torch as tome
from tomecore.errors import LostStateError, UnsupportedModelError
from vits.of_open_clip import MORE, TEXT, VISION, open_clip_tower, openai_model

CASES = {case.name.partition("-")[2]: case for case in MORE}
PLAIN = CASES["plain"]


def close(got, expected, error=1e-12):
    torch.testing.assert_close(
        got, expected, rtol=0, atol=error * float(expected.detach().abs().max())
    )


def clip(cls=CLIP, **vision):
    settings = {**VISION, "image_size": 32, "layers": 4, **vision}
    return FW.prepare(cls(16, settings, TEXT))


def texts():
    return torch.randint(1, 50, (3, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inner", [False, True], ids=["whole model", "visual"])
@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
@torch.no_grad()
def test_the_text_tower_stays_as_it_is(cls, inner):
    model, images = clip(cls), PLAIN.tensors()
    features, words = model.encode_image(images), model.encode_text(texts())
    before = FW.fingerprint(model)
    target = tome.apply_patch(model.visual if inner else model)
    assert torch.equal(model.encode_image(images), features)
    target.r = 8
    after = FW.fingerprint(model)
    changed = {path for path in before if path != "parameters" and before[path] != after[path]}
    blocks = {f"visual.transformer.resblocks.{i}" for i in range(4)}
    around = {"visual", "visual.conv1", "visual.transformer"}
    assert changed == blocks | around | (set() if inner else {""})
    assert torch.equal(model.encode_text(texts()), words)
    merged = model.encode_image(images)
    assert not torch.allclose(merged, features)
    assert target.tome.tokens == [57, 49, 41, 33]
    similar, _, scale = model(images, texts())
    close(similar, torch.nn.functional.normalize(merged, dim=-1))
    assert scale.ndim == 0
    tome.remove_patch(target)
    assert FW.fingerprint(model) == before
    assert torch.equal(model.encode_image(images), features)


@torch.no_grad()
def test_a_text_tower_by_itself_is_no_vision_tower():
    for part in (clip().transformer, clip(CustomTextCLIP).text):
        with pytest.raises(UnsupportedModelError, match="holds no vision transformer that"):
            tome.apply_patch(part)


@torch.no_grad()
def test_coca():
    """The pooler attends over all tokens, and the decoder over what the pooler gives."""
    pooler = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2}
    vision = {**VISION, **pooler, "image_size": 32, "layers": 4, "output_tokens": True}
    decoder = {"width": 16, "heads": 2, "layers": 2, "context_length": 8}
    words = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = FW.prepare(CoCa(16, decoder, words, vision))
    images = PLAIN.tensors()
    before = model(images, texts())
    tome.apply_patch(model)
    same = zip(model(images, texts()).values(), before.values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    model.r = 8
    after = model(images, texts())
    assert torch.equal(after["text_features"], before["text_features"])
    for name in ("image_features", "logits"):
        assert after[name].shape == before[name].shape
        assert not torch.allclose(after[name], before[name])
    with pytest.raises(UnsupportedModelError, match=r"an attentional pooler.*count a merged token"):
        tome.apply_patch(model, restore=False)


@torch.no_grad()
def test_both_blocks_match_tokens_by_the_same_keys():
    """One hands out its keys, the other's are of our attention half: same weights, same decisions."""
    tapped, own = CASES["custom"].model(), PLAIN.model(seed=1)
    own.load_state_dict(tapped.state_dict())
    for model in (tapped, own):
        tome.apply_patch(model, r=[8, 0, 5, 20], trace_source=True)
    images = PLAIN.tensors()
    close(own(images), tapped(images))
    assert torch.equal(own.tome.source, tapped.tome.source)


def sequence_first(model):
    model.transformer.batch_first = False
    for block in model.transformer.resblocks:
        block.attn.batch_first = False
    return model


@pytest.mark.parametrize("name", ["plain", "layer-scale"])
@torch.no_grad()
def test_sequence_first_towers_compute_the_same(name):
    model, images = CASES[name].patched(r=[8, 0, 5, 20], trace_source=True), PLAIN.tensors()
    other = sequence_first(CASES[name].model())
    before = other(images)
    tome.apply_patch(other, trace_source=True)
    assert torch.equal(other(images), before)
    other.r = [8, 0, 5, 20]
    close(other(images), model(images))
    assert other.tome.tokens == model.tome.tokens == [57, 57, 52, 32]
    assert torch.equal(other.tome.source, model.tome.source)
    for got, want in zip(*(layers(m, images) for m in (other, model)), strict=True):
        close(got, want)


def layers(model, images):
    return model.forward_intermediates(images)["image_intermediates"]


def test_one_block_that_is_not_sequence_first():
    model = sequence_first(PLAIN.model())
    model.transformer.resblocks[2].attn.batch_first = True
    with pytest.raises(
        UnsupportedModelError, match=r"resblocks\[2\]\.attn\.batch_first is not, so it would"
    ):
        tome.apply_patch(model)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_intermediate_layers_keep_all_positions(name):
    case = CASES[name]
    model, images = case.model(), case.tensors()
    before = model.clip.visual(images) if name == "whole" else model(images)
    whole = model.clip if name == "whole" else model
    tower = whole.visual if name == "whole" else model
    expected = tower.forward_intermediates(images)
    tome.apply_patch(whole)
    for got, want in zip(layers(tower, images), expected["image_intermediates"], strict=True):
        assert torch.equal(got, want)
    whole.r = [8, 0, 5, 20]
    output = tower.forward_intermediates(images, output_fmt="NLC", output_extra_tokens=True)
    assert [x.shape for x in output["image_intermediates"]] == [(3, 64, 32)] * 4
    assert [x.shape for x in output["image_intermediates_prefix"]] == [(3, 1, 32)] * 4
    counted = [x[0].unique(dim=0).shape[0] for x in output["image_intermediates"]]
    assert counted == [56, 56, 51, 31]
    close(output["image_features"], tower(images))
    assert output["image_features"].shape == before.shape
    early = tower.forward_intermediates(images, indices=[1], stop_early=True)
    assert early["image_intermediates"][0].shape == (3, 32, 8, 8)


@pytest.mark.parametrize("name", ["plain", "qk-norm"])
@torch.no_grad()
def test_without_restore_the_class_token_is_the_same(name):
    case, images = CASES[name], PLAIN.tensors()
    expected = case.patched(r=8)(images)
    model = case.patched(r=8, restore=False)
    close(model(images), expected)
    model.output_tokens = True
    assert model(images)[1].shape == (3, 32, 32)
    tome.apply_patch(model)
    assert model(images)[1].shape == (3, 64, 32)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.pooled])
def test_without_restore_pools_are_refused(name):
    with pytest.raises(UnsupportedModelError, match="the model pools over tokens"):
        CASES[name].patched(restore=False)


def test_checkpointed_blocks():
    """The checkpoint gets the other arguments of open_clip's blocks by position."""
    model, images = PLAIN.patched(r=8).train(), PLAIN.tensors()
    expected = FW.gradients(model, lambda: (model(images) ** 2).sum())
    model.set_grad_checkpointing()
    assert_same(FW.gradients(model, lambda: (model(images) ** 2).sum()), expected)


def test_dropped_patches():
    """Tokens are dropped before the first block, so the run counts what is left."""
    model = tome.apply_patch(FW.prepare(open_clip_tower(patch_dropout=0.5)(32, 4)), r=4)
    model.train()
    model(PLAIN.tensors())
    assert model.tome.tokens == [29, 25, 21, 17]
    assert model.tome.sizes.sum(1).tolist() == [33.0] * 3


@torch.no_grad()
def test_a_mask_of_all_tokens():
    model, tokens = PLAIN.patched(), torch.randn(2, 65, 32, dtype=torch.float64)
    mask = torch.zeros(65, 65, dtype=torch.float64)
    model.transformer(tokens, attn_mask=mask)
    model.r = 8
    with pytest.raises(UnsupportedModelError, match="called with attn_mask="):
        model.transformer(tokens, attn_mask=mask)
    assert model.transformer(tokens, attn_mask=None).shape == (2, 65, 32)


def test_pruned_layers():
    model = PLAIN.patched(r=8)
    model.prune_intermediate_layers([0, 1])
    with pytest.raises(LostStateError, match="has 2 blocks, but had 4"):
        model(PLAIN.tensors())


def test_blocks_that_differ_are_refused():
    cosine = open_clip_tower(scaled_cosine_attn=True)(32, 2)
    with pytest.raises(UnsupportedModelError, match=r"resblocks\[0\]: .*scaled cosine"):
        tome.apply_patch(cosine)
    crossed = PLAIN.model()
    crossed.transformer.resblocks[1] = ResidualAttentionBlock(32, 4, is_cross_attention=True)
    with pytest.raises(UnsupportedModelError, match=r"resblocks\[1\] has a child 'ln_1_kv'"):
        tome.apply_patch(crossed)
    with pytest.raises(UnsupportedModelError, match="holds no vision transformer that tomecore"):
        tome.apply_patch(clip(layers=(1, 1, 1, 1), width=32))


@pytest.mark.parametrize("inner", [False, True], ids=["whole model", "visual"])
@torch.no_grad()
def test_a_trunk_of_timm(inner):
    model = clip(CustomTextCLIP, timm_model_name="test_vit", timm_pool="avg", image_size=160)
    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    before = model.encode_image(images)
    target = tome.apply_patch(model.visual if inner else model)
    assert torch.equal(model.encode_image(images), before)
    target.r = 8
    assert not torch.allclose(model.encode_image(images), before)
    assert target.tome.tokens == [93, 85, 77, 69, 61, 53]
    assert [tuple(x.shape[2:]) for x in layers(model.visual, images)] == [(10, 10)] * 6


@pytest.mark.parametrize("name", ["plain", "qk-norm"])
@torch.no_grad()
def test_compiled_and_half(name):
    case = CASES[name]
    model, images = case.patched(depth=2, r=8), case.tensors()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(images), expected)
    torch.compiler.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(images.float()).isfinite().all()
    assert model.bfloat16()(images.bfloat16()).isfinite().all()


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_a_published_architecture_by_name():
    model = open_clip.create_model("ViT-S-32-alt", force_image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    before = model.encode_image(images)
    tome.apply_patch(model)
    assert torch.equal(model.encode_image(images), before)
    model.r = 1
    assert model.encode_image(images).shape == before.shape
    assert model.tome.tokens == [4, 3, *[2] * 10]


@torch.no_grad()
def test_openais_own_package():
    """The same weights in its tower and open_clip's make the same decisions and features."""
    theirs = openai_model().CLIP(16, 32, 4, 64, 4, 8, 50, 64, 1, 2).eval()
    ours = open_clip_tower(width=64, heads=1, mlp_ratio=4.0, act_layer=QuickGELU)(32, 4).eval()
    ours.load_state_dict(theirs.visual.state_dict())
    images, words = PLAIN.tensors().float(), texts()
    before, text = theirs.encode_image(images), theirs.encode_text(words)
    untouched = FW.fingerprint(theirs)
    tome.apply_patch(theirs, trace_source=True)
    assert torch.equal(theirs.encode_image(images), before)
    tome.apply_patch(ours, r=8, trace_source=True)
    theirs.r = 8
    close(theirs.encode_image(images), ours(images), 1e-5)
    assert theirs.tome.tokens == [57, 49, 41, 33]
    assert torch.equal(theirs.tome.source, ours.tome.source)
    assert torch.equal(theirs.encode_text(words), text)
    tome.remove_patch(theirs)
    assert FW.fingerprint(theirs) == untouched
    theirs.visual.transformer.resblocks[1].attn_mask = torch.zeros(65, 65)
    with pytest.raises(UnsupportedModelError, match=r"resblocks\[1\]: it has an attn_mask"):
        tome.apply_patch(theirs)
