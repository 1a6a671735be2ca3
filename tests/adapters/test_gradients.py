"""Law 6: gradients are right, and the same with activations recomputed in the backward pass."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from adapters.frameworks import handed_on
from tomecore.errors import LostStateError

REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def weigh(case, tokens):
    """A loss that looks at every token of the last block."""
    weights = np.random.default_rng(3).standard_normal(tuple(tokens.shape))
    return (tokens * case.fw.tensor(weights)).sum()


def through_blocks(case, model, images, *, reentrant=None, every=1):
    """The loss, with each ``every`` blocks in one checkpointed region; without any if None."""
    case.fw.seed(0)  # of the paths that are dropped
    x, blocks = case.entering(model, images), case.blocks(model)
    given = case.arguments(model, x)
    for start in range(0, len(blocks), every):

        def region(x, part=tuple(blocks[start : start + every])):
            for block in part:
                x = handed_on(block(x, **given))
            return x

        x = region(x) if reentrant is None else case.fw.checkpoint(region, x, reentrant=reentrant)
    return weigh(case, x)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        limit = 1e-12 * max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=limit, err_msg=name)


def in_training(case, **settings):
    model = case.patched(**settings)
    model.train()
    return model


@pytest.mark.parametrize("r", [0, 8, (6, -1.0)], ids=str)
def test_gradients_equal_finite_differences(smooth, r):
    case = smooth
    fw, model, images = case.fw, in_training(case, r=r), case.images(2)

    def loss():
        fw.seed(0)
        return (model(fw.tensor(images)) ** 2).sum()

    gradients = fw.gradients(model, loss)
    # a step so small that no near-tie in the matching flips
    generator, step, slope = np.random.default_rng(1), 1e-7, 0.0
    start, direction = {}, {}
    for name, parameter in model.named_parameters():
        start[name] = fw.numpy(parameter).copy()
        direction[name] = generator.standard_normal(start[name].shape)
        # without a gradient (a mask token, say): then it must not matter, which the slope will tell
        slope += (gradients.get(name, 0.0) * direction[name]).sum()
    values = []
    for sign in (1, -1):
        for name, parameter in model.named_parameters():
            fw.assign(parameter, start[name] + sign * step * direction[name])
        values.append(float(fw.numpy(loss())))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_a_step_down_the_gradient_lowers_the_loss(case):
    fw, model = case.fw, in_training(case, r=8)
    target = fw.tensor(np.random.default_rng(2).standard_normal((3, 7)))
    images, optimiser = case.tensors(), fw.sgd(model, 1e-4)
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
def test_recomputation_changes_no_gradient(case, every, reentrant):
    model, images = in_training(case, r=8), case.images()
    expected = case.fw.gradients(model, lambda: through_blocks(case, model, images))
    tokens = model.tome.tokens
    loss = through_blocks(case, model, images, reentrant=reentrant, every=every)
    assert_same(case.fw.gradients_of(model, loss), expected)
    assert model.tome.tokens == tokens


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


@REENTRANT
def test_r_changed_before_the_backward_pass_of_a_whole_model(plain, reentrant):
    """The images tell the recomputation which pass it repeats; so does the model, if they are new."""
    fw, model = plain.fw, in_training(plain, r=8)

    def loss(region, r):
        model.r, images = r, plain.tensors(seed=r)
        fw.require_gradient(images)
        return (fw.checkpoint(region, images, reentrant=reentrant) ** 2).sum()

    for region in (model, lambda x: model(2 * x)):
        expected = fw.gradients(model, lambda region=region: loss(region, 8))
        lost = loss(region, 8)
        model.r = 4
        assert_same(fw.gradients_of(model, lost), expected)


@REENTRANT
def test_two_passes_of_a_whole_model_under_two_values_of_r(plain, reentrant):
    fw, model = plain.fw, in_training(plain)

    def gradients(checkpointed):
        total = 0
        for r in (6, 1):
            model.r, images = r, plain.tensors(seed=r)
            fw.require_gradient(images)
            y = fw.checkpoint(model, images, reentrant=reentrant) if checkpointed else model(images)
            total = total + (y**2).sum()
        return fw.gradients_of(model, total)

    assert_same(gradients(True), gradients(False))


def test_passes_that_cannot_be_told_apart(plain):
    """The region begins before the model, whose input is new: no tensor knows which pass it was."""
    fw, model = plain.fw, in_training(plain)
    total = 0
    for r in (6, 1):
        model.r, images = r, plain.tensors(seed=r)
        fw.require_gradient(images)
        y = fw.checkpoint(lambda x: model(2 * x), images, reentrant=True)
        total = total + (y**2).sum()
    # Paddle wraps what a reentrant recomputation raises.
    with pytest.raises((LostStateError, OSError), match="with different values of r"):
        total.backward()


@REENTRANT
def test_crops_of_several_sizes_and_a_teacher(plain, reentrant):
    """A schedule object gives a different r for each number of tokens, though r was not changed."""
    fw, model = plain.fw, in_training(plain, r=lambda layers, tokens, protected: [tokens // 8])

    def gradients(checkpointed):
        total = 0
        for batch, seed in ((2, 1), (3, 2)):
            images = plain.tensors(batch, seed=seed)
            fw.require_gradient(images)
            y = fw.checkpoint(model, images, reentrant=reentrant) if checkpointed else model(images)
            total = total + (y**2).sum()
        crops = fw.tensor(fw.numpy(fw.tokens(model, plain.images()))[:, :33])
        x = crops  # the teacher sees fewer tokens
        for block in model.blocks:
            x = block(x)
        return fw.gradients_of(model, total)

    assert_same(gradients(True), gradients(False))


@REENTRANT
def test_one_tensor_under_two_values_of_r(plain, reentrant):
    """In torch both passes hand the same storage to the recomputation, which cannot tell them apart."""
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
