"""Laws that know the anatomy of a plain ViT's block."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

import tomecore as tc
from adapters import explicit
from adapters.laws.base import ForEachCase
from adapters.laws.lifecycle import check_refused, only_returns, subclass
from adapters.laws.state import TEXT
from tomecore.errors import (
    LostStateError,
    UnsupportedModelError,
)

SCHEDULES = [8, 30, [3, 0, 9, 20], (6, -1.0)]


#: (image side, r, depth). The patches are 1, 4, 9 or 25, so token counts are even and odd with any prefix.
#: Every pair of a side and a depth is here, and of an r and a depth; each side has an r that is too large.
SMALL = [
    *((4, 1, 1), (4, 1000, 3), (8, 1, 3), (8, 1000, 1)),
    *((12, 3, 1), (12, 1000, 3), (20, 3, 3), (20, 1000, 1)),
]


def last_tokens(case, model, images):
    """The output of the last block."""
    seen = []
    hook = case.fw.post_hook(model.blocks[-1], lambda m, a, y: seen.append(y) or None)
    case.fw.forward(model, images)
    hook.remove()
    return seen[0]


def replace_child(fw, block, name):
    setattr(block, name, fw.linear(32, 32))


def unknown_child(fw, model):
    model.blocks[2].adapter = fw.linear(32, 32)


def own_parameter(fw, model):
    model.blocks[1].gamma = fw.parameter()


def other_forward(fw, model):
    subclass(model.blocks[3], forward=only_returns)


def other_attention(fw, model):
    subclass(model.blocks[0].attn, forward=only_returns)


def no_blocks(fw, model):
    model.blocks = type(model.blocks)()


def own_r(fw, model):
    model.r = 3


def own_tome(fw, model):
    subclass(model, tome=property(lambda self: "mine"))


REFUSED = {
    "unknown child": (
        unknown_child,
        r"model\.blocks\[2\] has a child 'adapter' \(.*Linear\) that tomecore does not know",
    ),
    "own parameter": (
        own_parameter,
        r"model\.blocks\[1\] has parameters or buffers of its own \(gamma\)",
    ),
    "other forward": (
        other_forward,
        r"model\.blocks\[3\] is a .*Own, whose forward is not one that tomecore knows .*Block",
    ),
    "other attention": (
        other_attention,
        r"model\.blocks\[0\]\.attn is a .*Own; tomecore knows .*Attention",
    ),
    "no blocks": (no_blocks, r"model\.blocks is empty: there is no block to merge in"),
    "own r": (own_r, "has its own attribute 'r', which the patch would hide"),
    "own tome": (own_tome, "has its own attribute 'tome', which the patch would hide"),
} | {
    f"replaced {name}": (
        lambda fw, model, name=name: replace_child(fw, model.blocks[0], name),
        rf"model\.blocks\[0\]\.{name} is a .*\.Linear; tomecore knows .*and merging could break",
    )
    for name in ("norm1", "norm2", "attn", "mlp")
}


def no_gradients(fw):
    if fw.name == "torch":
        return torch.no_grad()
    import paddle

    return paddle.no_grad()


class PlainBlocks(ForEachCase):
    """Laws that use ``blocks``, ``attn.qkv`` and ``mlp``: written out, counted or removed."""

    @pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
    @pytest.mark.parametrize("prop_attn", [True, False], ids=["proportional", "plain attention"])
    @pytest.mark.parametrize("r", SCHEDULES, ids=str)
    def test_every_block_merges_like_the_written_out_model(self, case, r, prop_attn):
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

    @pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
    @pytest.mark.parametrize(("side", "r", "depth"), SMALL, ids=str)
    def test_any_number_of_tokens(self, case, side, r, depth):
        fw = case.fw
        model, images = case.model(size=side, depth=depth), case.images(1, size=side)
        n0 = case.num_tokens(side)
        tokens = fw.numpy(fw.tokens(model, images))
        assert tokens.shape[1] == n0
        layers = explicit.run(fw, model.blocks, tokens, [r] * depth, protected=case.prefix)
        unpatched = fw.forward(model, images)
        fw.tome.apply_patch(model, r=r, trace_source=True)
        output = fw.forward(model, images)
        assert output.shape == unpatched.shape
        assert np.isfinite(output).all()
        assert model.tome.tokens == tc.tokens_per_layer(depth, r, n0, protected=case.prefix)
        assert np.array_equal(fw.numpy(model.tome.sizes), layers[-1].sizes)
        assert np.array_equal(fw.numpy(model.tome.source), layers[-1].source)
        if model.tome.tokens[-1] == n0:
            assert np.array_equal(output, unpatched)

    def test_without_restore_the_shorter_sequence_comes_out(self, case):
        fw, images = case.fw, case.images()
        full = case.patched(r=8, trace_source=True)
        every = last_tokens(case, full, images)
        assert every.shape[1] == case.num_tokens()
        assert tuple(full.tome.sizes.shape) == (3, case.num_tokens() - 32)
        if case.pooled:
            before = fw.fingerprint(full)
            text = r"restore=False would give wrong results: the model pools .*global_pool="
            with pytest.raises(UnsupportedModelError, match=text):
                fw.tome.apply_patch(full, restore=False)
            assert fw.fingerprint(full) == before
            return
        output = fw.forward(full, images)
        short = case.patched(r=8, restore=False, trace_source=True)
        fewer = last_tokens(case, short, images)
        assert fewer.shape[1] == case.num_tokens() - 32 == short.tome.tokens[-1]
        assert np.array_equal(fw.numpy(short.tome.unmerge(fewer)), fw.numpy(every))
        assert np.array_equal(fw.forward(short, images), output)

    @pytest.mark.parametrize(("change", "text"), REFUSED.values(), ids=REFUSED)
    def test_a_changed_model_is_refused_and_untouched(self, case, change, text):
        fw, model = case.fw, case.model()
        change(fw, model)
        check_refused(fw, model, text)

    def test_a_block_called_by_itself(self, case):
        fw, model = case.fw, case.patched(r=8)
        x = fw.tokens(model, case.images())
        for later in (1, 3):
            with pytest.raises(LostStateError, match=TEXT):
                model.blocks[later](fw.tensor(fw.numpy(x)))
        model.r = 0
        fw.tome.remove_patch(model)
        expected = fw.numpy(model.blocks[1](x))
        fw.tome.apply_patch(model)
        assert np.array_equal(fw.numpy(model.blocks[1](x)), expected)

    def test_with_r_zero_tokens_may_be_cut_between_blocks(self, case):
        fw, model = case.fw, case.model()
        x = fw.tokens(model, case.images())

        def cut():
            y = model.blocks[0](x)
            return fw.numpy(model.blocks[3](model.blocks[2](model.blocks[1](y[1:, 2:]))[:, 1:]))

        expected = cut()
        fw.tome.apply_patch(model, r=8)
        model.r = 0
        assert np.array_equal(cut(), expected)

    def test_blocks_pruned_after_the_patch(self, case):
        fw, model = case.fw, case.patched(r=8)
        model.blocks = type(model.blocks)(*fw.listed(list(model.blocks)[:3]))
        text = "the model has 3 blocks, but had 4 when it was patched; call apply_patch on it again"
        with pytest.raises(LostStateError, match=text):
            fw.forward(model, case.images())

    def test_nothing_of_a_forward_pass_stays_but_its_results(self, case):
        """Activations die with their last user, without the garbage collector's help."""
        fw, model, alive = case.fw, case.patched(r=8), []

        def remember(module, args, y):
            alive.append(weakref.ref(y))

        for module in (*model.blocks, *(block.attn.qkv for block in model.blocks)):
            fw.post_hook(module, remember)
        output = model(case.tensors())
        assert len(alive) == 8
        del output
        assert [ref() for ref in alive] == [None] * 8
        assert fw.tome.HOST.captured_keys.get(False) is None

    def test_an_exception_inside_a_forward_leaves_the_model_usable(self, case):
        fw, model = case.fw, case.patched(r=8)
        expected = fw.forward(model, case.images())

        def fail(*_):
            raise ZeroDivisionError

        hook = fw.pre_hook(model.blocks[2].mlp, fail)
        with pytest.raises(ZeroDivisionError):
            fw.forward(model, case.images(seed=5))
        hook.remove()
        assert np.array_equal(fw.forward(model, case.images()), expected)

    def test_keys_are_let_go_before_the_other_half(self, case):
        """They are a view of queries, keys and values: the largest activation after the MLP's."""
        fw, model, held = case.fw, case.patched(r=8), []

        def remember(module, args, y):
            held.append(weakref.ref(y))

        for block in model.blocks:
            fw.post_hook(block.attn.qkv, remember)
            fw.pre_hook(block.mlp, lambda *_: alive.append(held[-1]() is not None))
        alive = []
        with no_gradients(fw):
            model(case.tensors())
        assert alive == [False] * 4
