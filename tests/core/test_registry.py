"""Names of matchings, and what they need."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest

from tomecore import matching
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.matching import registry
from tomecore.matching.trials import OWN


@pytest.fixture
def own_names(monkeypatch):
    """Forget the registrations of a test afterwards."""
    monkeypatch.setattr(registry, "_MATCHINGS", dict(registry._MATCHINGS))


def mine(keys, r, context):
    return matching.tome(keys, r, context)


def test_names_are_tomecores_own_first(own_names):
    before = matching.names()
    assert before[0] == "tome"
    matching.register("mine", mine)
    assert matching.names() == [*before, "mine"]
    assert matching.find("mine") is mine


def test_register_replaces(own_names):
    matching.register("tome", mine)
    assert matching.find("tome") is mine
    assert matching.names().count("tome") == 1


def test_every_name_is_a_public_function():
    for name in OWN:  # other tests of this process may have registered more
        assert matching.find(name) is getattr(matching, name)
        assert name in matching.__all__
        assert matching.find(name).__doc__


@pytest.mark.parametrize("name", matching.names())
def test_matchings_can_be_pickled(name):
    """With the modules that hold them, whose names some of them have."""
    assert pickle.loads(pickle.dumps(matching.find(name))) is matching.find(name)


def test_a_function_is_its_own_matching():
    bound = functools.partial(matching.kth, k=3)
    assert matching.find(mine) is mine
    assert matching.find(bound) is bound


@pytest.mark.parametrize(
    ("name", "near"), [("tomé", "tome"), ("EViT", None), ("diff_rate", "diffrate"), ("xyz", None)]
)
def test_an_unknown_name(name, near):
    with pytest.raises(ArgumentValueError, match=r"`matching` must be one of 'tome', ") as raised:
        matching.find(name)
    message = str(raised.value)
    assert f"got {name!r}." in message
    assert ("Did you mean" in message) == (near is not None)
    advice = "before you use it or load its model." if near is None else f"Did you mean {near!r}?"
    assert message.endswith(advice)


@pytest.mark.parametrize("wrong", [3, None, np.ones(2)])
def test_what_is_no_matching(wrong):
    with pytest.raises(
        ArgumentTypeError, match=r"`matching` must be a name, or a function \(keys, r"
    ):
        matching.find(wrong)
    with pytest.raises(
        ArgumentTypeError, match=r"`matching` must be a function \(keys, r, context"
    ):
        matching.register("wrong", wrong)
    assert "wrong" not in matching.names()


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_is_a_string(name):
    with pytest.raises(ArgumentTypeError, match="`name` must be a string that is not empty; got"):
        matching.register(name, mine)


def test_needs():
    assert matching.needs_of(matching.tome) == frozenset()
    assert matching.needs_of(matching.ppt) == {"class_attention", "values"}
    declared = matching.needs("values")(lambda keys, r, context: None)
    assert matching.needs_of(declared) == {"values"}


def test_needs_through_partial():
    once = functools.partial(matching.diffrate, prune=0.5)
    assert matching.needs_of(once) == {"class_attention"}
    assert matching.needs_of(functools.partial(once, prune=0.1)) == {"class_attention"}


def test_what_a_matching_cannot_need():
    with pytest.raises(
        ArgumentValueError, match="`what` must be 'class_attention' or 'values'; got 'keys'"
    ):
        matching.needs("keys")
