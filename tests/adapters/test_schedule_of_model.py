"""``model.r``: what it takes, refuses and keeps, and when a schedule is called."""

from __future__ import annotations

import numpy as np
import pytest

from tomecore.errors import ArgumentTypeError, ArgumentValueError, NoForwardError

BAD = {
    "negative": (-1, ArgumentValueError, "-1"),
    "text": ("16", ArgumentTypeError, r"`r` must be an int .*got '16' \(str\)"),
    "float": (1.5, ArgumentTypeError, r"`r` must be an int .*got 1.5 \(float\)"),
    "bool": (True, ArgumentTypeError, r"`r` must be an int .*got True \(bool\)"),
    "too long": ([1] * 13, ArgumentValueError, "`r` has 13 numbers for a model of 12 layers"),
    "negative in list": ([1, -2], ArgumentValueError, r"r\[1\].*-2"),
    "float in list": ([1, 2.5], ArgumentTypeError, r"r\[1\].*2.5"),
    "inflect": ((8, 1.5), ArgumentValueError, "inflect.*got 1.5"),
    "triple": ((8, 0, 0), ArgumentValueError, r"must be \(r, inflect\)"),
    "none": (None, ArgumentTypeError, "got None"),
}


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize(("r", "error", "text"), BAD.values(), ids=BAD)
def test_a_bad_r_is_refused_and_the_old_one_stays(plain, r, error, text):
    model = plain.patched(depth=12, size=8, r=2)
    with pytest.raises(error, match=text):
        model.r = r
    assert model.r == 2
    with pytest.raises(error, match=text):
        model.tome.r = r
    assert model.r == model.tome.r == 2
    if r is not None:
        with pytest.raises(error, match=text):
            plain.fw.tome.apply_patch(model, r=r)
    assert model.r == 2
    plain.fw.forward(model, plain.images(1, size=8))
    assert model.tome.tokens[0] == 3


@pytest.mark.parametrize(
    ("r", "error", "text"),
    [BAD[k] for k in BAD if k != "none"],
    ids=[k for k in BAD if k != "none"],
)
def test_a_bad_r_leaves_an_unpatched_model_alone(plain, r, error, text):
    model = plain.model(depth=12, size=8)
    before = plain.fw.fingerprint(model)
    with pytest.raises(error, match=text):
        plain.fw.tome.apply_patch(model, r=r)
    assert plain.fw.fingerprint(model) == before


@pytest.mark.parametrize("name", ["trace_source", "restore"])
@pytest.mark.parametrize("value", ["yes", 1, 0.0], ids=repr)
def test_other_settings_must_be_bool(plain, name, value):
    model = plain.model()
    before = plain.fw.fingerprint(model)
    with pytest.raises(ArgumentTypeError, match=f"`{name}` must be True or False; got {value!r}"):
        plain.fw.tome.apply_patch(model, **{name: value})
    assert plain.fw.fingerprint(model) == before


def test_a_list_that_changes_later_does_not(plain):
    listed = [4, 4]
    model = plain.patched(r=listed)
    listed[:] = [0, 0]
    assert model.r == [4, 4]
    plain.fw.forward(model, plain.images())
    assert model.tome.tokens == [61, 57, 57, 57]


class Thirds:
    """A schedule that depends on the number of tokens, and records its arguments."""

    def __init__(self):
        self.asked = []

    def __call__(self, num_layers, num_tokens, protected):
        self.asked.append((num_layers, num_tokens, protected))
        return [(num_tokens - protected) // 4] * 2


def test_a_schedule_object_is_asked_at_the_first_block(own):
    schedule = Thirds()
    model = own.patched(r=schedule)
    assert schedule.asked == []
    assert model.r is schedule
    with pytest.raises(NoForwardError):
        model.tome.schedule  # noqa: B018
    output = own.fw.forward(model, own.images())
    assert schedule.asked == [(4, own.num_tokens(), own.prefix)]
    assert model.tome.schedule == [16, 16, 0, 0]
    assert model.tome.tokens == [own.num_tokens() - n for n in (16, 32, 32, 32)]
    assert np.array_equal(output, own.fw.forward(own.patched(r=[16, 16]), own.images()))


def test_a_schedule_object_that_answers_badly_is_an_error(plain):
    model = plain.patched(r=lambda layers, tokens, protected: [-1] * layers)
    with pytest.raises(ArgumentValueError, match="-1"):
        plain.fw.forward(model, plain.images())
