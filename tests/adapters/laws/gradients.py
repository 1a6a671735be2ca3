"""Law 6: gradients are right, and the same with activations recomputed in the backward pass."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.frameworks import handed_on
from adapters.laws.base import ForEachCase

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


class Gradients(ForEachCase):
    """Laws that training needs."""

    @pytest.mark.parametrize("r", [8, (6, -1.0)], ids=str)
    def test_gradients_equal_finite_differences(self, smooth, r):
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

    def test_recomputation_changes_no_gradient(self, case):
        """Each block by itself and two together, with both kinds of checkpoint."""
        model, images = in_training(case, r=8), case.images()
        expected = case.fw.gradients(model, lambda: through_blocks(case, model, images))
        tokens = model.tome.tokens
        for every, reentrant in ((1, True), (2, False)):
            loss = through_blocks(case, model, images, reentrant=reentrant, every=every)
            assert_same(case.fw.gradients_of(model, loss), expected)
            assert model.tome.tokens == tokens

    @pytest.mark.parametrize("r", [0, 8])
    def test_one_step_in_training(self, case, r):
        """Dropped paths, frozen or not: the gradients of a step are finite and reach every block."""
        fw, model = case.fw, case.patched(r=r)
        model.train()
        fw.seed(0)
        gradients = fw.gradients(model, lambda: (model(case.tensors(8)) ** 2).sum())
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
        paths = {id(module): path for path, module in fw.modules(model).items()}
        for block in case.blocks(model):
            name = f"{paths[id(block)]}."
            assert any(n.startswith(name) and np.abs(g).max() > 0 for n, g in gradients.items())

    def test_train_and_eval_differ_by_dropped_paths_only(self, case):
        fw, model, images = case.fw, case.patched(r=8), case.images()
        evaluated = fw.forward(model, images)
        model.train()
        trained = fw.forward(model, images)
        assert np.array_equal(trained, evaluated) is not case.drops
        model.eval()
        assert np.array_equal(fw.forward(model, images), evaluated)
