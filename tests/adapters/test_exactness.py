"""Laws 1-3: r=0 changes nothing, the halves are the block's own, merging does what it says."""

from __future__ import annotations

import numpy as np
import pytest

import tomecore as tc
from adapters import explicit
from adapters.frameworks import handed_on
from tomecore.adapters.engine.find import find_tower


def both_halves(fw, spec, block, x, given):
    """What the spec's two halves make of ``x``, nothing merged in between."""
    y = spec.attend(fw.tome.HOST, block, x, None, given)
    y = y[0] if isinstance(y, tuple) else y
    return y if spec.feed is None else spec.feed(block, y)


SCHEDULES = [8, 30, [3, 0, 9, 20], (6, -1.0)]


@pytest.mark.parametrize(
    "settings", [{}, {"prop_attn": False, "trace_source": True}], ids=["default", "traced"]
)
def test_r_zero_is_the_original_bit_for_bit(case, settings):
    model, images = case.model(), case.images()
    before = case.fw.forward(model, images)
    case.fw.tome.apply_patch(model, **settings)
    assert np.array_equal(case.fw.forward(model, images), before)
    model.r = 8
    assert not np.allclose(case.fw.forward(model, images), before)
    model.r = 0
    assert np.array_equal(case.fw.forward(model, images), before)
    assert model.tome.tokens == [case.num_tokens()] * 4
    assert np.array_equal(case.fw.numpy(model.tome.sizes), np.ones((3, case.num_tokens())))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_two_halves_are_the_blocks_own_forward(case, dtype):
    fw, model = case.fw, case.model()
    if dtype == "float32":
        model = fw.single(model)
    spec, _, blocks = find_tower(fw.tome.HOST, fw.tome.SPECS, model)
    tokens = np.random.default_rng(0).standard_normal((2, case.num_tokens(), 32)).astype(dtype)
    x = fw.tensor(tokens)
    for block in blocks:
        given = case.arguments(model, x)
        halves, whole = (
            fw.numpy(both_halves(fw, spec, block, x, given)),
            fw.numpy(handed_on(block(x, **given))),
        )
        assert whole.dtype == dtype
        if case.exact:
            assert np.array_equal(halves, whole)
        else:
            limit = {"float64": 1e-13, "float32": 1e-6}[dtype] * np.abs(whole).max()
            np.testing.assert_allclose(halves, whole, rtol=0, atol=limit)


def test_dropped_paths_are_the_same_in_the_halves(case):
    """With the same seed, an unpatched block and its halves draw the same samples."""
    fw, model = case.fw, case.model()
    spec, _, blocks = find_tower(fw.tome.HOST, fw.tome.SPECS, model)
    model.train()
    tokens = np.random.default_rng(0).standard_normal((8, case.num_tokens(), 32))
    x, unchanged = fw.tensor(tokens), 0
    given = case.arguments(model, x)
    for number, block in enumerate(blocks):
        fw.seed(number)
        whole = fw.numpy(handed_on(block(x, **given)))
        fw.seed(number)
        halves = fw.numpy(both_halves(fw, spec, block, x, given))
        limit = 0 if case.exact else 1e-13 * np.abs(whole).max()
        np.testing.assert_allclose(halves, whole, rtol=0, atol=limit)
        unchanged += int((whole == tokens).all(axis=(1, 2)).sum())
    assert (unchanged > 0) is case.drops


@pytest.mark.parametrize("prop_attn", [True, False], ids=["proportional", "plain attention"])
@pytest.mark.parametrize("r", SCHEDULES, ids=str)
def test_every_block_merges_like_the_written_out_model(case, r, prop_attn):
    fw = case.fw
    model, images = case.model(), case.images(2)
    tokens = fw.numpy(fw.tokens(model, images))
    layers = explicit.run(
        fw,
        case.blocks(model),
        tokens,
        tc.parse_r(4, r),
        protected=case.prefix,
        prop_attn=prop_attn,
    )
    fw.tome.apply_patch(model, r=r, prop_attn=prop_attn, trace_source=True)
    seen = []
    for block in case.blocks(model):
        fw.post_hook(block, lambda module, args, output: seen.append(fw.numpy(output)) or None)
    fw.forward(model, images)

    expected = [layer.x for layer in layers[:-1]] + [layers[-1].restored]
    for got, want in zip(seen, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())
    assert model.tome.tokens == [layer.x.shape[1] for layer in layers]
    assert np.array_equal(fw.numpy(model.tome.sizes), layers[-1].sizes)
    assert np.array_equal(fw.numpy(model.tome.source), layers[-1].source)


@pytest.mark.parametrize("r", [*SCHEDULES, 16, (5, 1.0), [40]], ids=str)
def test_tokens_sizes_and_source_agree(case, r):
    fw = case.fw
    model = case.patched(r=r, trace_source=True)
    fw.forward(model, case.images())
    tome, n0 = model.tome, case.num_tokens()
    sizes, source = fw.numpy(tome.sizes), fw.numpy(tome.source)
    assert tome.tokens == tc.tokens_per_layer(4, r, n0, protected=case.prefix)
    assert tome.schedule == tc.parse_r(4, r)
    assert tome.protected == case.prefix
    assert sizes.dtype == np.float32
    assert sizes.shape == (3, tome.tokens[-1])
    assert np.array_equal(sizes.sum(axis=1), [n0] * 3)
    for sample, slots in zip(sizes, source, strict=True):
        assert np.array_equal(np.bincount(slots, minlength=len(sample)), sample)
    assert np.array_equal(sizes[:, : case.prefix], np.ones((3, case.prefix)))
    assert np.array_equal(source[:, : case.prefix], np.tile(np.arange(case.prefix), (3, 1)))


def test_proportional_attention_is_the_default_and_changes_the_output(case):
    images = case.images()
    outputs = {
        prop_attn: case.fw.forward(case.patched(r=8, prop_attn=prop_attn), images)
        for prop_attn in (None, True, False)
    }
    assert np.array_equal(outputs[None], outputs[case.prop_attn])
    assert not np.allclose(outputs[True], outputs[False])
    assert case.patched().tome.prop_attn is case.prop_attn
