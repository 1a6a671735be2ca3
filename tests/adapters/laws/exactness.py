"""Laws 1 to 3: r=0 changes nothing, the halves are the block's own, merging does what it says."""

from __future__ import annotations

import numpy as np
import pytest

import tomecore as tc
from adapters.frameworks import handed_on
from adapters.laws.base import ForEachCase
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import ClampWarning


def both_halves(fw, spec, block, x, given):
    """Return the output of the spec's two halves for ``x``, without a merge in between."""
    y = spec.attend(fw.tome.HOST, block, x, None, given)
    y = y[0] if isinstance(y, tuple) else y
    return y if spec.feed is None else spec.feed(block, y)


def twins(case, pairs: int, seed: int = 0) -> np.ndarray:
    """(2, prefix + 2 * pairs, 32): tokens of the front, then each patch next to its twin."""
    generator = np.random.default_rng(seed)
    front = generator.standard_normal((2, case.prefix, 32))
    patches = np.repeat(generator.standard_normal((2, pairs, 32)), 2, axis=1)
    return np.concatenate([front, patches], axis=1)


def through(case, model, tokens):
    fw = case.fw
    x = fw.tensor(tokens)
    given = case.arguments(model, x)
    for block in case.blocks(model):
        x = handed_on(block(x, **given))
    return fw.numpy(x)


class Exactness(ForEachCase):
    """The outputs of a merging model."""

    @pytest.mark.parametrize(
        "settings", [{}, {"prop_attn": False, "trace_source": True}], ids=["default", "traced"]
    )
    def test_r_zero_is_the_original_bit_for_bit(self, case, settings):
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
    def test_the_two_halves_are_the_blocks_own_forward(self, case, dtype):
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

    def test_dropped_paths_are_the_same_in_the_halves(self, case):
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

    @pytest.mark.parametrize("r", [[3, 0, 9, 20], (6, -1.0)], ids=str)
    def test_tokens_sizes_and_source_agree(self, case, r):
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

    def test_proportional_attention_is_the_default_and_changes_the_output(self, case):
        images = case.images()
        outputs = {
            prop_attn: case.fw.forward(case.patched(r=8, prop_attn=prop_attn), images)
            for prop_attn in (None, True, False)
        }
        assert np.array_equal(outputs[None], outputs[case.prop_attn])
        assert not np.allclose(outputs[True], outputs[False])
        assert case.patched().tome.prop_attn is case.prop_attn

    @pytest.mark.parametrize("layer", [0, 1])
    def test_merging_twins_changes_nothing(self, case, layer):
        fw, model, tokens = case.fw, case.model(), twins(case, 32)
        expected = through(case, model, tokens)
        amounts = [0] * layer + [16]  # half of the twins: sizes differ, so attention must know them
        fw.tome.apply_patch(model, r=amounts, prop_attn=True)
        merged = through(case, model, tokens)
        assert model.tome.tokens[-1] == case.prefix + 48
        sizes = np.sort(fw.numpy(model.tome.sizes)[:, case.prefix :])
        assert np.array_equal(sizes, np.tile([1.0] * 32 + [2.0] * 16, (2, 1)))
        np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
        fw.tome.apply_patch(
            model, prop_attn=False
        )  # the law sees it when sizes do not reach attention
        wrong = through(case, model, tokens)
        assert not np.allclose(wrong, expected)

    def test_a_batch_of_one_is_the_first_of_a_batch(self, case):
        model = case.patched(r=8, trace_source=True)
        images = case.images(3)
        together = case.fw.forward(model, images)
        sizes = case.fw.numpy(model.tome.sizes)
        alone = case.fw.forward(model, images[:1])
        np.testing.assert_allclose(alone, together[:1], rtol=0, atol=1e-12 * np.abs(together).max())
        assert np.array_equal(case.fw.numpy(model.tome.sizes), sizes[:1])

    def test_r_too_large_keeps_half_in_each_layer_and_never_the_prefix(self, case):
        model = case.patched(r=10**6)
        with pytest.warns(ClampWarning, match="exceeds what a layer can merge"):
            case.fw.forward(model, case.images())
        tokens = [case.num_tokens()]
        for after in model.tome.tokens:
            assert after == tokens[-1] - (tokens[-1] - case.prefix) // 2
            tokens.append(after)
