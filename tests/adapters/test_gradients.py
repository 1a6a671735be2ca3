"""Law 6: gradients are right, and the same with activations recomputed in the backward pass."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from adapters.laws.gradients import REENTRANT, assert_same, in_training, through_blocks
from tomecore.errors import LostStateError


def test_a_step_down_the_gradient_lowers_the_loss(own):
    fw, model = own.fw, in_training(own, r=8)
    target = fw.tensor(np.random.default_rng(2).standard_normal((3, 7)))
    images, optimiser = own.tensors(), fw.sgd(model, 1e-4)
    losses = []
    for _ in range(3):
        fw.seed(0)  # the same paths are dropped each time
        fw.clear_gradients(model)
        loss = ((model(images) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(fw.numpy(loss)))
    assert losses[0] > losses[1] > losses[2]


@REENTRANT
@pytest.mark.parametrize("every", [1, 2, 4], ids="every {}".format)
def test_regions_of_any_length_are_recomputed(plain, every, reentrant):
    """As the law ``test_recomputation_changes_no_gradient``, with every length and kind of region."""
    model, images = in_training(plain, r=8), plain.images()
    expected = plain.fw.gradients(model, lambda: through_blocks(plain, model, images))
    loss = through_blocks(plain, model, images, reentrant=reentrant, every=every)
    assert_same(plain.fw.gradients_of(model, loss), expected)


@REENTRANT
def test_two_forwards_in_flight(plain, reentrant):
    fw, model = plain.fw, in_training(plain, r=8)
    one, two = plain.images(seed=1), plain.images(seed=2)

    def loss(reentrant):
        return sum(
            through_blocks(plain, model, images, reentrant=reentrant) for images in (one, two)
        )

    expected = fw.gradients(model, lambda: loss(None))
    assert_same(fw.gradients(model, lambda: loss(reentrant)), expected)


@REENTRANT
@pytest.mark.parametrize("every", [1, 4], ids="every {}".format)
def test_r_changed_between_forward_and_backward(plain, every, reentrant):
    fw, model, images = plain.fw, in_training(plain, r=4), plain.images()
    expected = fw.gradients(model, lambda: through_blocks(plain, model, images))
    for later in (8, 0, [1, 2]):
        model.r = 4
        loss = through_blocks(plain, model, images, reentrant=reentrant, every=every)
        model.r = later
        assert_same(fw.gradients_of(model, loss), expected)


@REENTRANT
def test_backward_in_another_thread(plain, reentrant):
    fw, model, images = plain.fw, in_training(plain, r=8), plain.images()
    expected = fw.gradients(model, lambda: through_blocks(plain, model, images))
    loss = through_blocks(plain, model, images, reentrant=reentrant)
    got = []
    thread = threading.Thread(target=lambda: got.append(fw.gradients_of(model, loss)))
    thread.start()
    thread.join(timeout=60)
    assert_same(got[0], expected)


def test_results_are_those_of_the_forward_not_of_its_recomputation(plain):
    fw, model = plain.fw, in_training(plain, r=8)
    first = through_blocks(plain, model, plain.images(2, seed=1), reentrant=True)
    plain.fw.forward(model, plain.images(3, seed=2))
    sizes = fw.numpy(model.tome.sizes)
    assert sizes.shape[0] == 3
    first.backward()
    assert np.array_equal(fw.numpy(model.tome.sizes), sizes)


def test_a_region_that_begins_before_the_blocks(plain):
    fw, model, images = plain.fw, in_training(plain, r=8), plain.tensors()
    fw.require_gradient(images)
    expected = fw.gradients(model, lambda: (model(images) ** 2).sum())
    loss = (fw.checkpoint(model, images, reentrant=True) ** 2).sum()
    assert_same(fw.gradients_of(model, loss), expected)


def test_passes_that_cannot_be_told_apart(plain):
    """The region begins before the model, whose input is new: no tensor knows which pass it was."""
    fw, model = plain.fw, in_training(plain)
    total: Any = 0
    for r in (6, 1):
        model.r, images = r, plain.tensors(seed=r)
        fw.require_gradient(images)
        y = fw.checkpoint(lambda x: model(2 * x), images, reentrant=True)
        total = total + (y**2).sum()
    # Paddle wraps what a reentrant recomputation raises.
    with pytest.raises((LostStateError, OSError), match="with different values of r"):
        total.backward()


@REENTRANT
def test_one_tensor_under_two_values_of_r(plain, reentrant):
    """In torch both passes give the recomputation the same storage, so it cannot tell them apart."""
    fw, model = plain.fw, in_training(plain)
    x = fw.tensor(fw.numpy(fw.tokens(model, plain.images())))
    fw.require_gradient(x)

    def region(x):
        for block in model.blocks:
            x = block(x)
        return x

    def loss(r):
        model.r = r
        return (fw.checkpoint(region, x, reentrant=reentrant) ** 2).sum()

    model.r = 4
    expected = fw.gradients(model, lambda: (region(x) ** 2).sum())
    assert_same(fw.gradients(model, lambda: loss(4)), expected)
    both = loss(4) + loss(8)
    copied = hasattr(type(x), "_new_shared_tensor")  # Paddle from 3.3.1 on
    if fw.name == "torch" or (reentrant and not copied):
        with pytest.raises((LostStateError, OSError), match="with different values of r"):
            both.backward()
    elif reentrant:  # each copy of the tensor knows its pass

        def directly(r):
            model.r = r
            return (region(x) ** 2).sum()

        got = fw.gradients_of(model, both)
        assert_same(got, fw.gradients(model, lambda: directly(4) + directly(8)))
