"""Law 11: threads, several models, train and eval do not meet each other."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.laws.state import in_lock_step
from tomecore.errors import LostStateError


def test_threads_that_differ_in_batch_size(plain):
    fw, model = plain.fw, plain.patched(r=8)
    expected = [fw.forward(model, plain.images(n, seed=n)) for n in (1, 2)]
    runs = [lambda n=n: fw.forward(model, plain.images(n, seed=n)) for n in (1, 2)]
    for mine, alone in zip(in_lock_step(fw, model.blocks, runs), expected, strict=True):
        assert np.array_equal(mine, alone)


def test_gradients_in_threads_that_share_a_model(plain):
    """Each thread needs the gradient of its own images, which no other thread touches."""
    fw, model = plain.fw, plain.patched(r=8)

    def gradient(seed):
        images = plain.tensors(seed=seed)
        fw.require_gradient(images)
        (model(images) ** 2).sum().backward()
        return fw.numpy(images.grad).copy()

    expected = [gradient(seed) for seed in (0, 1)]
    got = in_lock_step(fw, model.blocks, [lambda seed=seed: gradient(seed) for seed in (0, 1)])
    for mine, alone in zip(got, expected, strict=True):
        assert np.array_equal(mine, alone)


def test_two_models_do_not_share_settings_or_results(own):
    fw, images = own.fw, own.images()
    first, second = own.patched(r=8), own.patched(r=2, prop_attn=False)
    alone = fw.forward(first, images), fw.forward(second, images)
    assert first.tome.tokens[-1] == own.num_tokens() - 32
    assert second.tome.tokens[-1] == own.num_tokens() - 8
    second.r = 0
    assert first.r == 8
    assert np.array_equal(fw.forward(first, images), alone[0])
    fw.tome.remove_patch(second)
    assert np.array_equal(fw.forward(first, images), alone[0])


def test_the_output_of_one_model_may_feed_another(plain):
    """The state of an activation belongs to one model, and a second model does not take it."""
    fw = plain.fw
    first, second = plain.patched(r=8), plain.patched(r=3)
    x = fw.tokens(first, plain.images())
    alone = fw.numpy(blocks(second, fw.tensor(fw.numpy(blocks(first, x)))))
    assert np.array_equal(fw.numpy(blocks(second, blocks(first, x))), alone)
    y = first.blocks[0](x)
    with pytest.raises(LostStateError, match="without their sizes"):
        second.blocks[1](y)


def blocks(model, x):
    for block in model.blocks:
        x = block(x)
    return x
