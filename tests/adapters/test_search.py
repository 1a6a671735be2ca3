"""Searches for a schedule, in both frameworks. Where a model does not matter, ``read`` decides the loss."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math

import numpy as np
import pytest

from tomecore import schedule
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NotPatchedError
from tomecore.schedule.search import Space

SPEEDUP = 1.5


def patched(case):
    model = case.patched(r=3)
    return model, np.asarray(case.images(8))


def losing(loss):
    """Return a ``read`` whose vectors are ``loss(r, image)`` radians from those without merging."""

    def read(model, images):
        model(images)
        r = model.tome.schedule
        angles = [loss(r, index) if any(r) else 0.0 for index in range(len(images))]
        return np.array([[math.cos(one), math.sin(one)] for one in angles])

    return read


def early(r, index):
    """Loss of a model that must not merge early."""
    return 0.01 * r[0] * (1 + 0.1 * index)


def test_a_search_reaches_the_speedup_and_restores_r(plain):
    model, images = patched(plain)
    found = schedule.search(model, plain.fw.tensor(images), SPEEDUP, passes=8)
    assert model.r == 3
    assert all(type(one) is int for one in found)
    assert len(found) == 4
    assert model.tome.arithmetic.limit(65, found) >= SPEEDUP
    assert schedule.search(model, [images[:4], images[4:]], SPEEDUP, passes=8) == found
    model.r = found
    plain.fw.forward(model, images)
    assert model.tome.schedule == found


def test_what_loses_less_on_all_images_is_found(plain):
    model, images = patched(plain)
    found = schedule.tune(model, images, SPEEDUP, read=losing(early))
    assert found.better
    assert list(found.schedule.r) == found.candidate != found.rule
    assert found.schedule.r[0] < found.rule[0]
    assert found.loss < found.rule_loss
    assert found.difference == pytest.approx(found.loss - found.rule_loss)
    assert found.difference < -found.error < 0
    assert found.schedule.speedup >= SPEEDUP
    assert found.images == 4
    assert found.says.startswith("Found a schedule: on the 4 images held back")
    assert json.loads(json.dumps(found.as_dict()))["search"]["better"] is True


def test_what_loses_more_on_images_held_back_is_not_returned(plain, caplog):
    """The images that choose are those with even numbers; here the others want the opposite."""
    model, images = patched(plain)

    def read(model, batch):
        first = np.allclose(np_of(batch), images[::2])
        return losing(lambda r, index: 0.01 * r[0] if first else 0.5 - 0.01 * r[0])(model, batch)

    found = schedule.tune(model, images, SPEEDUP, read=read)
    assert not found.better
    assert found.candidate != found.rule == list(found.schedule.r)
    assert found.difference > 0
    assert found.loss == found.rule_loss
    with caplog.at_level(logging.WARNING, "tomecore.schedule"):
        assert schedule.search(model, images, SPEEDUP, read=read) == found.rule
    assert "Found no better schedule" in caplog.text
    assert "the result is the schedule of 'ratio'" in caplog.text


def np_of(tensor):
    return tensor.detach().numpy() if hasattr(tensor, "detach") else np.asarray(tensor)


def test_where_nothing_helps_the_rule_is_returned(plain):
    model, images = patched(plain)
    found = schedule.tune(model, images, SPEEDUP, read=losing(lambda r, index: 0.3), passes=20)
    assert found.candidate is None
    assert not found.better
    assert found.passes <= 20
    assert "No schedule was better than the rule 'ratio' on the images of the search" in found.says


def test_an_interrupted_search_continues(plain, tmp_path):
    model, images = patched(plain)
    path = tmp_path / "search.json"
    expected = schedule.tune(model, images, SPEEDUP, read=losing(early), passes=20)
    calls = itertools.count()

    def failing(model, images):
        if next(calls) == 9:
            raise KeyboardInterrupt
        return losing(early)(model, images)

    with pytest.raises(KeyboardInterrupt):
        schedule.search(model, images, SPEEDUP, read=failing, passes=20, resume=path)
    assert model.r == 3
    assert len(json.loads(path.read_text())["losses"]) == 7  # two passes were unpatched
    steps = []
    found = schedule.tune(
        model,
        images,
        SPEEDUP,
        read=failing,
        passes=20,
        resume=path,
        progress=lambda *step: steps.append(step),
    )
    assert found.schedule == expected.schedule
    assert found.passes == expected.passes
    assert next(calls) - 10 == expected.passes - 7  # what is in the file is not measured again
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert {most for _, most, _ in steps} == {20}
    with pytest.raises(ArgumentValueError, match="belongs to other images, another model"):
        schedule.search(model, images[::-1].copy(), SPEEDUP, read=losing(early), resume=path)
    path.write_text("[")
    with pytest.raises(ArgumentValueError, match="cannot be resumed"):
        schedule.search(model, images, SPEEDUP, read=losing(early), resume=path)


def test_the_fastest_that_loses_no_more(plain, monkeypatch):
    """Merging takes all the time here, and loses nothing in itself: one merge is best, if it is enough."""
    model, images = patched(plain)

    def clock(run, schedules, rounds=7):
        for _ in range(rounds):
            yield [1.0 + sum(0.1 for one in r if one) - 1e-3 * sum(r) for r in schedules]

    monkeypatch.setattr(importlib.import_module("tomecore.schedule.search"), "time_in_turn", clock)
    found = schedule.tune(
        model, images, SPEEDUP, cost="measured", read=losing(lambda r, index: 0.1), batch=2
    )
    assert found.better
    assert sum(1 for one in found.schedule.r if one) < 4
    assert found.schedule.speedup >= SPEEDUP
    assert found.faster > 1
    worse = losing(lambda r, index: 0.1 if all(r) else 0.2)
    found = schedule.tune(model, images, SPEEDUP, cost="measured", read=worse)
    assert not found.better
    assert list(found.schedule.r) == found.rule


def test_an_array_in_the_output_is_read(plain):
    model, images = patched(plain)

    def wrapped(model, images):
        return {"none": (), "logits": model(images)}["logits"]

    settings = {"passes": 6}
    both = [schedule.tune(model, images, SPEEDUP, read=one, **settings) for one in (None, wrapped)]
    assert both[0].rule_loss == both[1].rule_loss > 0


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (lambda x: x[:0], ArgumentValueError, "holds no image"),
        (lambda x: [], ArgumentValueError, "holds no image"),
        (lambda x: x[:3], ArgumentValueError, "holds 3, too few to hold half of them back"),
        (
            lambda x: [(x, np.zeros(8, int))],
            ArgumentTypeError,
            r"images\[0\]` is a tuple.*no labels",
        ),
        (lambda x: (x, np.zeros(8, int)), ArgumentValueError, r"images\[1\]`.*if these are labels"),
        (lambda x: x[0], ArgumentValueError, r"shape \(B, C, H, W\); got \(3, 32, 32\)"),
        (lambda x: (255 * x).astype(np.uint8), ArgumentTypeError, "must be floating point"),
        (lambda x: [x, x[..., :16]], ArgumentValueError, "one number of tokens"),
        (lambda x: "photos", ArgumentTypeError, "got str"),
        (lambda x: [x.tolist()], ArgumentTypeError, "is a list"),
        (lambda x: [3], ArgumentTypeError, "got int"),
    ],
)
def test_images_that_are_refused(plain, images, error, message):
    model, right = patched(plain)
    with pytest.raises(error, match=message):
        schedule.search(model, images(right), SPEEDUP)
    assert model.r == 3


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (lambda m, x: m(x) * float("nan"), ArgumentValueError, "NaN or infinity without merging"),
        (
            lambda m, x: m(x) * (float("nan") if (m.r != 0) else 1.0),
            ArgumentValueError,
            "NaN or infinity with r = ",
        ),
        (lambda m, x: m(x).tolist() if hasattr(m(x), "tolist") else 0, ArgumentTypeError, "list"),
        (lambda m, x: m(x)[:1], ArgumentValueError, "batch first, 4 images here"),
        (lambda m, x: m(x).sum(), ArgumentValueError, "batch first"),
        (lambda m, x: m(x)[:, : 1 + (m.r != 0)], ArgumentValueError, "as many numbers"),
        (lambda m, x: np.array(["a"] * len(m(x))), ArgumentTypeError, "must return numbers"),
        ("logits", ArgumentTypeError, "must be a function"),
        (lambda m, x: m(x) * 0, ArgumentValueError, "only zeros for image 0 .*zeros have no cos"),
        (lambda m, x: x.reshape([len(x), -1]), ArgumentValueError, "the same with and without"),
    ],
)
def test_reads_that_are_refused(plain, read, error, message):
    model, images = patched(plain)
    with pytest.raises(error, match=f"`read`.*{message}"):
        schedule.search(model, images, SPEEDUP, read=read)
    assert model.r == 3


def test_other_arguments_that_are_refused(plain):
    model, images = patched(plain)
    with pytest.raises(NotPatchedError, match="call apply_patch"):
        schedule.search(plain.model(), images, SPEEDUP)
    with pytest.raises(ArgumentValueError, match="'arithmetic' or 'measured'; got 'time'"):
        schedule.search(model, images, SPEEDUP, cost="time")
    with pytest.raises(ArgumentValueError, match="finite number of at least 1"):
        schedule.search(model, images, 0.5)
    with pytest.raises(ArgumentValueError, match=r"20 times faster.*Use for_speedup"):
        schedule.search(model, images, 20)
    with pytest.raises(ArgumentValueError, match="`passes` must be an integer of at least 6"):
        schedule.search(model, images, SPEEDUP, passes=5)
    assert model.r == 3


def test_shapes_reach_the_speedup_with_the_fewest_merges(plain):
    model = plain.patched()
    space = Space(model.tome.arithmetic, 65, SPEEDUP)
    rule = schedule.for_speedup(model, SPEEDUP)(4, 65, 1)
    assert space.of_shape([1.0] * 4) == rule
    for shape in space.few_merges():
        r = space.of_shape(shape)
        if r is not None:
            assert space.limit(r) >= SPEEDUP
            assert all(bool(part) or not one for part, one in zip(shape, r, strict=True))
    assert space.of_shape([0.0, 0.0, 0.0, 1.0]) is None
