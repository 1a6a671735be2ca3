"""Every form of ``r``, its clamps, and what is said about a wrong one."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tomecore as tc
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.schedule import Schedule


def published(num_layers, r, inflect):
    """The line of the paper's code: from ``int(r (1 - inflect))`` in equal steps, each truncated."""
    low = int(r * (1 - inflect))
    high = 2 * r - low
    step = (high - low) / (num_layers - 1)
    return [int(low + step * layer) for layer in range(num_layers)]


@pytest.mark.parametrize("r", [0, 8, np.int64(8), np.uint8(8)], ids=repr)
def test_int(r):
    assert tc.parse_r(3, r) == [int(r)] * 3
    assert all(type(one) is int for one in tc.parse_r(3, r))


@pytest.mark.parametrize("num_layers", [2, 3, 12, 24])
@pytest.mark.parametrize("r", [0, 1, 7, 8, 16])
@pytest.mark.parametrize("inflect", [-1, -0.5, -0.3, 0, 0.1, 0.7, 1])
def test_line(num_layers, r, inflect):
    numbers = tc.parse_r(num_layers, (r, inflect))
    assert numbers == published(num_layers, r, inflect)
    assert min(numbers) >= 0


def test_line_by_hand():
    falling = [32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0]
    truncated = [int(32 - layer * 32 / 11) for layer in range(12)]
    assert tc.parse_r(12, (16, -1)) == truncated
    assert tc.parse_r(12, (16, -1.0)) == truncated
    assert tc.parse_r(12, (16, 1)) == [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32]
    assert tc.parse_r(12, (16, 0)) == [16] * 12
    assert truncated == falling


def test_line_of_one_layer():
    """The published formula divides by zero here."""
    assert tc.parse_r(1, (16, -1)) == [16]


def test_line_takes_numpy_numbers():
    assert tc.parse_r(4, (np.int64(6), np.float32(-1))) == published(4, 6, -1)


@pytest.mark.parametrize("values", [[3, 0, 9], [np.int64(3), 0, 9], range(3)], ids=repr)
def test_list(values):
    assert tc.parse_r(3, values) == [int(value) for value in values]


def test_short_list_is_padded_with_zeros():
    assert tc.parse_r(4, [5]) == [5, 0, 0, 0]
    assert tc.parse_r(4, []) == [0, 0, 0, 0]


class Halving:
    def __init__(self):
        self.asked = []

    def __call__(self, num_layers, num_tokens, protected):
        self.asked.append((num_layers, num_tokens, protected))
        return [(num_tokens - protected) // 2, 1]


def test_schedule_object():
    schedule = Halving()
    assert isinstance(schedule, Schedule)
    assert tc.parse_r(4, schedule, num_tokens=21, protected=1) == [10, 1, 0, 0]
    assert tc.tokens_per_layer(4, schedule, 21) == [11, 10, 10, 10]
    assert schedule.asked == [(4, 21, 1)] * 2


def test_schedule_function():
    def schedule(num_layers, num_tokens, protected):
        return (protected,) * num_layers

    assert tc.parse_r(2, schedule, num_tokens=9, protected=3) == [3, 3]


def test_the_argument_stays_as_it_was():
    values = [3, 2]
    tc.parse_r(4, values)
    assert values == [3, 2]
    assert tc.parse_r(2, values) is not values


@pytest.mark.parametrize(
    ("r", "num_tokens", "protected", "expected"),
    [
        (8, 197, 1, [189, 181, 173]),
        (0, 197, 1, [197, 197, 197]),
        (100, 197, 1, [99, 50, 26]),
        ([50, 0, 1000], 197, 1, [147, 147, 74]),
        (100, 10, 0, [5, 3, 2]),
        (100, 10, 5, [8, 7, 6]),
        (100, 3, 0, [2, 1, 1]),
        (1, 1, 0, [1, 1, 1]),
        (3, 2, 9, [2, 2, 2]),
    ],
)
def test_tokens_per_layer(r, num_tokens, protected, expected):
    assert tc.tokens_per_layer(3, r, num_tokens, protected) == expected


def test_one_token_is_protected_by_default():
    assert tc.tokens_per_layer(1, 100, 11) == tc.tokens_per_layer(1, 100, 11, protected=1) == [6]


def test_clamps_are_those_of_matching(rng):
    for protected in (0, 1, 2, 5):
        tokens, expected = 23, tc.tokens_per_layer(6, 4, 23, protected)
        for after in expected:
            keys = rng.normal(size=(1, tokens, 3))
            tokens = tc.bipartite_soft_matching(keys, 4, protected=protected).num_slots
            assert tokens == after


FORMS = "`r` must be an int (tokens merged per layer), a tuple (r, inflect)"

WRONG = {
    "string": ("16", TypeError, FORMS, "got '16' (str)"),
    "bytes": (b"16", TypeError, FORMS, "got b'16' (bytes)"),
    "float": (1.5, TypeError, FORMS, "got 1.5 (float)"),
    "whole float": (8.0, TypeError, FORMS, "got 8.0 (float)"),
    "bool": (True, TypeError, FORMS, "got True (bool)"),
    "none": (None, TypeError, FORMS, "got None"),
    "set": ({1, 2}, TypeError, FORMS, "got {1, 2} (set)"),
    "array": (np.array([1, 2]), TypeError, FORMS, "(ndarray)"),
    "negative": (-1, ValueError, "`r` must be an integer of at least 0", "got -1", "Use 0"),
    "list too long": ([1] * 4, ValueError, "`r` has 4 numbers", "3 layers", "at most 3"),
    "list, negative": ([1, -2], ValueError, "`r[1]`", "at least 0", "got -2"),
    "list, float": ([1, 2.0], TypeError, "`r[1]`", "integer", "got 2.0 (float)"),
    "list, bool": ([True], TypeError, "`r[0]`", "integer", "got True (bool)"),
    "list, string": (["1"], TypeError, "`r[0]`", "integer", "got '1' (str)"),
    "tuple of one": ((8,), ValueError, "`r`", "(r, inflect)", "got (8,)", "Use a list"),
    "tuple of three": ((8, 8, 8), ValueError, "`r`", "(r, inflect)", "got (8, 8, 8)", "list"),
    "line, negative": ((-8, 0), ValueError, "`r[0]`", "at least 0", "got -8"),
    "line, float": ((8.5, 0), TypeError, "`r[0]`", "integer", "got 8.5"),
    "inflect too low": ((8, -1.1), ValueError, "`r[1]`", "from -1", "to 1", "got -1.1"),
    "inflect too high": ((8, 2), ValueError, "`r[1]`", "from -1", "to 1", "got 2"),
    "inflect nan": ((8, float("nan")), ValueError, "`r[1]`", "from -1", "to 1", "got nan"),
    "inflect string": ((8, "0.5"), TypeError, "`r[1]`", "number from -1 to 1", "got '0.5'"),
    "inflect none": ((8, None), TypeError, "`r[1]`", "number from -1 to 1", "got None"),
    "inflect bool": ((8, True), TypeError, "`r[1]`", "number from -1 to 1", "got True"),
    "answer none": (lambda *_: None, TypeError, "schedule object", "list of ints", "got None"),
    "answer string": (lambda *_: "12", TypeError, "schedule object", "list of ints", "got '12'"),
    "answer negative": (lambda *_: [-1], ValueError, "(...)[0]`", "at least 0", "got -1"),
    "answer float": (lambda *_: [0.5], TypeError, "(...)[0]`", "integer", "got 0.5"),
    "answer too long": (lambda *_: [1] * 4, ValueError, "4 numbers", "3 layers", "at most 3"),
}


@pytest.mark.parametrize(
    ("r", "error", "parts"),
    [pytest.param(r, error, parts, id=name) for name, (r, error, *parts) in WRONG.items()],
)
@pytest.mark.parametrize("function", [tc.parse_r, tc.tokens_per_layer])
def test_wrong_r(function, r, error, parts):
    error = {TypeError: ArgumentTypeError, ValueError: ArgumentValueError}[error]
    arguments = {"num_tokens": 50}
    with pytest.raises(error, match=".*".join(map(re.escape, parts))):
        function(3, r, **arguments)


def test_schedule_object_needs_the_number_of_tokens():
    with pytest.raises(ArgumentValueError, match=r"schedule object \(Halving\).*`num_tokens=`"):
        tc.parse_r(3, Halving())


def test_wrong_counts():
    with pytest.raises(ArgumentValueError, match=r"`num_layers` .*at least 1; got 0"):
        tc.parse_r(0, 8)
    with pytest.raises(ArgumentTypeError, match=r"`num_layers` .*integer.*got 1.5"):
        tc.parse_r(1.5, 8)
    with pytest.raises(ArgumentValueError, match=r"`num_tokens` .*at least 1; got 0"):
        tc.tokens_per_layer(3, 8, 0)
    with pytest.raises(ArgumentTypeError, match=r"`num_tokens` .*integer.*got '9'"):
        tc.tokens_per_layer(3, 8, "9")
    with pytest.raises(ArgumentValueError, match=r"`protected` .*at least 0; got -1"):
        tc.tokens_per_layer(3, 8, 9, protected=-1)
    with pytest.raises(ArgumentTypeError, match=r"`protected` .*integer.*got True"):
        tc.tokens_per_layer(3, 8, 9, protected=True)
