"""Training as it is done in Paddle: accumulated, recomputed, in two processes; compared in float64."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute

from paddle_production.distributed import BATCH, CASES, PROCESSES, SCENARIOS, outcome, start
from paddle_production.models import CLAS, OWN_PLAIN, near

MODELS = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of each of two gloo processes. Both start only once, because starting is slow."""
    return start(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def alone():
    """The results of one process on the whole batch, by model."""
    found = {}
    for case in CASES:
        model = case.patched(r=8)
        found[case.name] = outcome(model, model, [case.tensors(BATCH)])
    return found


@MODELS
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_processes_are_one(answers, alone, case, scenario):
    expected = alone[case.name]
    start = f"{case.name}/{scenario}/"
    found = [
        {key.removeprefix(start): a for key, a in answer.items() if key.startswith(start)}
        for answer in answers
    ]
    assert [int(answer["processes"]) for answer in answers] == [PROCESSES] * PROCESSES
    near(np.concatenate([one["output"] for one in found]), expected["output"])
    for one in found:
        assert one.keys() == expected.keys()
        assert one["tokens"].tolist() == expected["tokens"].tolist() == [57, 49, 41, 33]
        for name, gradient in expected.items():
            if name.startswith("gradient"):  # DataParallel takes the mean over processes
                near(PROCESSES * one[name], gradient)


@MODELS
def test_gradients_of_steps_add_up(case):
    """Four steps of one image and one of all four, r being changed before the last."""
    model, whole = case.patched(r=2), case.tensors(BATCH)
    model.train()
    images = np.split(whole.numpy(), BATCH)
    for index, image in enumerate(images):
        model.r = 8 if index else [8] * 4
        (model(case.fw.tensor(image)) ** 2).sum().backward()
    got = {name: p.grad.numpy() for name, p in model.named_parameters()}
    once = case.patched(r=8)
    once.train()
    near(got, case.fw.gradients(once, lambda: (once(whole) ** 2).sum()))


@MODELS
def test_two_forwards_before_their_backwards(case):
    """Each under its own r, and each backward pass finds its own activations."""
    model, images = case.patched(r=8), case.tensors(2)
    model.train()
    expected = {}
    for r in (8, 3):
        model.r = r
        expected[r] = case.fw.gradients(model, lambda: (model(images) ** 2).sum())
    model.r = 8
    case.fw.clear_gradients(model)
    first = (model(images) ** 2).sum()
    model.r = 3
    second = (model(images) ** 2).sum()
    second.backward()
    first.backward()
    got = {name: p.grad.numpy() for name, p in model.named_parameters()}
    near(got, {name: expected[8][name] + expected[3][name] for name in got})


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_recomputation_with_dropout(reentrant):
    """The random numbers of the recomputed attention half are those of the forward pass."""
    case = CLAS
    model, images = case.patched(r=8), case.tensors(2)
    model.train()
    for block in model.blocks:
        block.attn.proj_drop.p = block.mlp.drop.p = block.attn.attn_drop.p = 0.2

    def loss(region):
        paddle.seed(7)
        x = case.entering(model, case.images(2))
        for block in model.blocks:
            x = region(block, x)
        return (x**2).sum()

    expected = case.fw.gradients(model, lambda: loss(lambda block, x: block(x)))
    case.fw.clear_gradients(model)
    again = case.fw.gradients(
        model, lambda: loss(lambda block, x: recompute(block, x, use_reentrant=reentrant))
    )
    near(again, expected)
    assert np.abs(model(images).numpy() - model(images).numpy()).max() > 0


def test_a_step_under_an_optimizer_and_a_schedule_of_r():
    """AdamW, weight decay, r growing while training: the loss falls, nothing is left over."""
    model, images = OWN_PLAIN.patched(r=0), OWN_PLAIN.tensors()
    model.train()
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.01)
    names, losses = list(model.state_dict()), []
    for r in (0, 2, 4, 8, 8, 8):
        model.r = r
        loss = (model(images) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    assert max(losses[-3:]) < 0.5 * losses[0]
    assert list(model.state_dict()) == names
    assert set(model.state_dict()) == {*dict(model.named_parameters())}
