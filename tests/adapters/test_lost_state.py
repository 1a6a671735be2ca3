"""Where sizes cannot follow the tokens there is an error, never a silent wrong number."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from tomecore.errors import LostStateError

TEXT = (
    r"got tokens of shape \(\d, \d+, 32\) without their sizes\. .*pass that same tensor on .*"
    r"or set model\.r = 0"
)


def test_a_block_called_by_itself(case):
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


def test_a_callable_schedule_may_merge_so_a_block_by_itself_is_refused(plain):
    model = plain.patched(r=lambda layers, tokens, protected: [0] * layers)
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](plain.fw.tokens(model, plain.images()))


@pytest.mark.parametrize("layer", [0, 2])
def test_a_hook_that_returns_a_new_tensor(case, layer):
    fw, model = case.fw, case.patched(r=8)

    def anew(module, args, y):
        return (y[0] * 1,) if isinstance(y, tuple) else y * 1

    hook = fw.post_hook(case.blocks(model)[layer], anew)
    with pytest.raises(LostStateError, match=TEXT):
        fw.forward(model, case.images())
    hook.remove()
    assert np.isfinite(fw.forward(model, case.images())).all()


def test_a_hook_that_returns_the_same_tensor(plain):
    fw, model = plain.fw, plain.patched(r=8)
    expected = fw.forward(model, plain.images())
    fw.post_hook(model.blocks[1], lambda module, args, y: y)
    assert np.array_equal(fw.forward(model, plain.images()), expected)


def test_tokens_of_another_length_under_the_same_run(plain):
    fw, model = plain.fw, plain.patched(r=8)
    y = model.blocks[0](fw.tokens(model, plain.images()))
    fewer = y[:, :-1]
    for name, value in vars(y).items():
        if name.startswith("_tome"):
            setattr(fewer, name, value)
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](fewer)


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("r", [8, [8]], ids=str)
def test_a_part_of_the_batch(plain, r, prop_attn):
    """In torch a slice shares its storage, and what rides there, with the whole."""
    fw, model = plain.fw, plain.patched(r=r, prop_attn=prop_attn)
    y = model.blocks[0](fw.tokens(model, plain.images()))
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](y[1:2])


def test_with_r_zero_tokens_may_be_cut_between_blocks(case):
    fw, model = case.fw, case.model()
    x = fw.tokens(model, case.images())

    def cut():
        y = model.blocks[0](x)
        return fw.numpy(model.blocks[3](model.blocks[2](model.blocks[1](y[1:, 2:]))[:, 1:]))

    expected = cut()
    fw.tome.apply_patch(model, r=8)
    model.r = 0
    assert np.array_equal(cut(), expected)


def test_blocks_pruned_after_the_patch(case):
    fw, model = case.fw, case.patched(r=8)
    model.blocks = type(model.blocks)(*fw.listed(list(model.blocks)[:3]))
    text = "the model has 3 blocks, but had 4 when it was patched; call apply_patch on it again"
    with pytest.raises(LostStateError, match=text):
        fw.forward(model, case.images())


def test_two_patched_blocks_swapped(plain):
    fw, model = plain.fw, plain.patched(r=[4, 0, 0, 8])
    x = fw.tokens(model, plain.images())
    for index in (0, 2):
        x = model.blocks[index](x)
    with pytest.raises(LostStateError, match=r"blocks\[1\] .* was called after block 2"):
        model.blocks[1](x)


def test_nothing_of_a_forward_pass_stays_but_its_results(case):
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
    assert fw.tome.HOST.taps.get(False) is None


def test_an_exception_inside_a_forward_leaves_the_model_usable(case):
    fw, model = case.fw, case.patched(r=8)
    expected = fw.forward(model, case.images())

    def fail(*_):
        raise ZeroDivisionError

    hook = fw.pre_hook(model.blocks[2].mlp, fail)
    with pytest.raises(ZeroDivisionError):
        fw.forward(model, case.images(seed=5))
    hook.remove()
    assert np.array_equal(fw.forward(model, case.images()), expected)
