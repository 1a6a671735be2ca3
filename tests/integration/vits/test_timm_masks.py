"""Masks of timm's models: which tokens are padding is understood, anything else is refused.

Padding has size 0 and merges first: while it lasts, merging must not change a number of what is real.
"""

from __future__ import annotations

import pytest
import torch
from timm.models.naflexvit import NaFlexVit

import tomecore as tc
from tomecore.adapters import torch as tome
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.of_timm import timm_model

TAKING = pytest.mark.parametrize(
    "name",
    ["timm-plain", "timm-post-norm", "timm-things", "timm-parallel", "timm-diff", "timm-eva02"],
)


def padded(case, pads=(20, 11, 0)):
    """A mask of keys, True for real tokens; the last ``pads`` of each sample are padding."""
    n0 = case.num_tokens()
    return torch.arange(n0) < n0 - torch.tensor(pads)[:, None]


def ways(real):
    """The same padding, said in all ways that are understood."""
    keys = real[:, None, None]
    pairs = keys & keys.transpose(2, 3)
    zero = torch.zeros((), dtype=torch.float64)
    lowest = torch.finfo(torch.float64).min
    return {
        "bool": keys,
        "infinity": torch.where(keys, zero, -torch.inf),
        "lowest": torch.where(keys, zero, lowest),
        "pairs": pairs,
        "pairs as numbers": torch.where(pairs, zero, lowest),
    }


@torch.no_grad()
def test_a_sample_that_is_all_padding():
    """A softmax of minus infinities, which in bfloat16 must be zeros, too, as in the unpatched model."""
    case = case_named("timm-plain")
    model = case.model().bfloat16()
    images = case.tensors()[:1].bfloat16().expand(64, -1, -1, -1)
    real = (torch.arange(case.num_tokens()) < 45).expand(64, -1).clone()
    real[3] = False
    assert model.forward_features(images, attn_mask=real[:, None, None]).isfinite().all()
    tome.apply_patch(model, r=[5, 3])
    assert model.forward_features(images, attn_mask=real[:, None, None]).isfinite().all()


@pytest.mark.parametrize("r", [[5, 3], [0, 5, 0, 3]], ids=str)
@TAKING
@torch.no_grad()
def test_merging_padding_loses_nothing(name, r):
    """20 tokens of padding, with 5 and then 3 merged: each goes to other padding."""
    case = case_named(name)
    model, images = case.model(), case.tensors()[:1]
    real = padded(case)[:1]
    expected = model.forward_features(images, attn_mask=real[:, None, None])
    tome.apply_patch(model, r=r, trace_source=True)
    for mask in ways(real).values():
        got = model.forward_features(images, attn_mask=mask)
        assert model.tome.tokens == tc.tokens_per_layer(4, r, 65)
        torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-11)
        assert model.tome.sizes.sum(1).tolist() == [45]
    assert not torch.allclose(got, model.forward_features(images))


@TAKING
@torch.no_grad()
def test_what_is_in_the_padding_does_not_matter(name):
    case = case_named(name)
    model, images = case.patched(r=[8, 12, 6, 9], trace_source=True), case.tensors()
    real = padded(case)
    other = images.clone()
    other[0, :, -8:] = 100.0  # the last two rows of patches: 16 of the 20 tokens of padding

    def features(images):
        return model.forward_features(images, attn_mask=real[:, None, None])[real]

    for prop_attn in (True, False):
        tome.apply_patch(model, prop_attn=prop_attn)
        expected = features(images)
        limit = 1e-11 * float(expected.abs().max())
        torch.testing.assert_close(features(other), expected, rtol=0, atol=limit)
        assert model.tome.sizes.sum(1).tolist() == [45, 54, 65]


def test_one_mask_for_all_samples_with_checkpointing_and_readers():
    case = case_named("timm-eva02")
    fw, model, images = case.fw, case.patched(r=8), case.tensors()
    mask = padded(case)[:1, None, None]
    expected = fw.gradients(model, lambda: model(images, attn_mask=mask).square().sum())
    spread = mask.expand(3, -1, -1, -1)
    torch.testing.assert_close(model(images, attn_mask=mask), model(images, attn_mask=spread))
    model.set_grad_checkpointing(True)
    again = fw.gradients(model, lambda: model(images, attn_mask=mask).square().sum())
    for name, gradient in expected.items():
        torch.testing.assert_close(torch.from_numpy(again[name]), torch.from_numpy(gradient))
    final, _ = model.forward_intermediates(images, attn_mask=mask)
    real = mask[:, 0, 0].expand(3, -1)
    features = model.forward_features(images, attn_mask=mask)
    torch.testing.assert_close(final[real], features[real])


def unfit(n0):
    causal = torch.ones(n0, n0, dtype=torch.bool).tril()
    return {
        "causal": causal,
        "causal in four axes": causal[None, None],
        "pairs with a hole": ~torch.eye(n0, dtype=torch.bool).roll(1, 0)[None, None],
        "weights of keys": torch.linspace(-1, 0, n0, dtype=torch.float64).expand(1, 1, 1, -1),
        "weights of pairs": torch.full((1, 1, n0, n0), -0.1, dtype=torch.float64),
        "per head": torch.ones(1, 4, n0, n0, dtype=torch.bool),
        "per query": torch.ones(n0, 1, dtype=torch.bool),
    }


@pytest.mark.parametrize("kind", unfit(2))
@TAKING
@torch.no_grad()
def test_other_masks_are_refused_while_merging(name, kind):
    case = case_named(name)
    mask = unfit(case.num_tokens())[kind]
    model, images = case.model(), case.tensors()
    expected = model(images, attn_mask=mask)
    tome.apply_patch(model, r=8)
    with pytest.raises(
        UnsupportedModelError, match=r"attn_mask of shape \(.*single pairs of tokens"
    ):
        model(images, attn_mask=mask)
    model.r = 0
    assert torch.equal(model(images, attn_mask=mask), expected)


NAFLEX = {
    "average": {},
    "map": {"global_pool": "map"},
    "token": {"class_token": True, "global_pool": "token", "reg_tokens": 2},
    "keys only": {"use_key_only_attn_mask": True},
    "rope": {"rope_type": "axial", "pos_embed": "none"},
    "rope-mixed": {"rope_type": "mixed", "class_token": True},
}


def ragged(grids=((6, 8), (5, 4), (8, 8)), patch=4, fill=0.0):
    """A batch of images of these grids as NaFlex loaders make it, padded to the largest."""
    longest = max(h * w for h, w in grids)
    generator = torch.Generator().manual_seed(0)
    patches = torch.full((len(grids), longest, patch * patch * 3), fill, dtype=torch.float64)
    coordinates = torch.zeros(len(grids), longest, 2, dtype=torch.long)
    valid = torch.zeros(len(grids), longest, dtype=torch.bool)
    for sample, (height, width) in enumerate(grids):
        count = height * width
        patches[sample, :count] = torch.rand(
            count, patch * patch * 3, generator=generator, dtype=torch.float64
        )
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
        coordinates[sample, :count] = places
        valid[sample, :count] = True
    return {"patches": patches, "patch_coord": coordinates, "patch_valid": valid}


def naflex(**arguments):
    build = timm_model(NaFlexVit, **arguments)
    return case_named("timm-naflex").fw.prepare(build(img_size=32, depth=4))


@pytest.mark.parametrize("arguments", NAFLEX.values(), ids=NAFLEX)
@torch.no_grad()
def test_naflex_merging_padding_loses_nothing(arguments):
    model = naflex(**arguments)
    prefix = model.num_prefix_tokens
    batch = {name: value[:2] for name, value in ragged().items()}  # 16 and 44 of 64 are padding
    expected, features = model(batch), model.forward_features(**batch)
    tome.apply_patch(model, r=[4, 4], trace_source=True)
    got, merged = model(batch), model.forward_features(**batch)
    assert model.tome.tokens == [prefix + n for n in (60, 56, 56, 56)]
    assert model.tome.sizes.sum(1).tolist() == [prefix + 48, prefix + 20]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    real = batch["patch_valid"]
    torch.testing.assert_close(
        merged["patches"][:, prefix:][real],
        features["patches"][:, prefix:][real],
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize("arguments", NAFLEX.values(), ids=NAFLEX)
@torch.no_grad()
def test_naflex_padding_does_not_matter(arguments):
    """Real tokens merge too; a batch of its own without padding would merge them earlier."""
    model = naflex(**arguments)
    tome.apply_patch(model, r=[8, 20, 6, 5])
    expected = model(ragged())
    torch.testing.assert_close(
        model(ragged(fill=50.0)), expected, rtol=0, atol=1e-10 * float(expected.abs().max())
    )
    sizes = model.tome.sizes.sum(1) - model.num_prefix_tokens
    assert sizes.tolist() == [48, 20, 64]
    same = model(ragged(grids=((8, 8),)))
    alone = model(ragged(grids=((8, 8), (8, 8))))
    torch.testing.assert_close(alone[:1], same)
    layers = model.forward_intermediates(
        ragged(), output_fmt="NLC", intermediates_only=True, output_dict=True
    )
    assert [tuple(x.shape) for x in layers["image_intermediates"]] == [(3, 64, 32)] * 4


@torch.no_grad()
def test_naflex_images_in_a_plain_batch():
    model = naflex(rope_type="axial")
    images = case_named("timm-naflex").tensors()
    before = model(images)
    tome.apply_patch(model, r=8)
    assert model(images).shape == before.shape
    assert model.tome.tokens == [56, 48, 40, 32]


@torch.no_grad()
def test_gemma_padding_does_not_matter():
    model = case_named("timm-gemma4").model().encoder
    batch = ragged(grids=((6, 6), (3, 6), (6, 3)))
    expected = model.forward_features(batch)
    tome.apply_patch(model, r=[3, 3])
    got = model.forward_features(batch)
    real = batch["patch_valid"]
    torch.testing.assert_close(got[1:][real[1:]], expected[1:][real[1:]], rtol=0, atol=1e-11)
    other = model.forward_features(ragged(grids=((6, 6), (3, 6), (6, 3)), fill=9.0))
    torch.testing.assert_close(other[real], got[real], rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_mask_is_compiled():
    case = case_named("timm-eva")
    model, images = case.patched(depth=2, r=8), case.tensors()
    mask = padded(case)[:, None, None]
    expected = model(images, attn_mask=mask)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, attn_mask=mask), expected, rtol=0, atol=1e-11)
    torch.compiler.reset()
