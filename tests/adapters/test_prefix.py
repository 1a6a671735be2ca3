"""Tokens in front of the patches never merge silently, even if the family does not know them."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest

from adapters.laws.passes import MORE, joined, with_more_in_front
from tomecore.errors import ArgumentTypeError, ArgumentValueError, UnsupportedModelError


def alone(source, front):
    """Whether the first ``front`` tokens share their slots with no other."""
    return all((source == source[:, i : i + 1]).sum() == len(source) for i in range(front))


@pytest.mark.parametrize("where", ["subclass", "instance", "instance without the embedding"])
def test_who_announces_them(plain, where):
    """The advice of the message: the prefix tokens share their slots with no other."""
    fw, model = plain.fw, plain.model()
    front = plain.prefix + MORE
    drawn = fw.tensor(np.random.default_rng(5).standard_normal((1, MORE, 32)))
    embedding = fw.numpy(model.patch_embed(plain.tensors()))

    def forward_features(self, x):
        patches = fw.tensor(embedding) if "without" in where else self.patch_embed(x)
        token = self.cls_token.expand([3, 1, 32])
        x = joined(fw, [token, drawn.expand([3, MORE, 32]), patches], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    if where == "subclass":
        model.__class__ = type("More", (type(model),), {"forward_features": forward_features})
    else:
        model.forward_features = types.MethodType(forward_features, model)
    expected = fw.forward(model, plain.images())
    fw.tome.apply_patch(model, r=8, trace_source=True)
    text = r"protected=N\)" if "without" in where else rf"protected={front}\)"
    for call in (model, model.forward_features):
        with pytest.raises(UnsupportedModelError, match=text):
            call(plain.tensors())
    model.r = 0
    assert np.array_equal(fw.forward(model, plain.images()), expected)
    fw.tome.apply_patch(model, r=8, protected=front, trace_source=True)
    assert model.tome.protected == front
    model(plain.tensors())
    assert alone(fw.numpy(model.tome.source), front)
    assert model.tome.tokens == [64, 56, 48, 40]


def test_it_is_kept_when_patched_again_until_auto(plain):
    fw, model = plain.fw, plain.patched(r=4, protected=5)
    assert model.tome.protected == 5
    fw.tome.apply_patch(model, r=2)
    assert model.tome.protected == 5
    fw.tome.apply_patch(model, protected=None)
    assert model.tome.protected == 5
    fw.tome.apply_patch(model, protected="auto")
    assert model.tome.protected == plain.prefix
    assert model.r == 2


def test_a_copy_keeps_it(plain):
    model = copy.deepcopy(plain.patched(r=4, protected=5))
    model(plain.tensors())
    assert model.tome.protected == 5


BAD = {
    "a bool": (True, ArgumentTypeError, r"`protected` must be an integer .* got True \(bool\)"),
    "negative": (-1, ArgumentValueError, "`protected` must be an integer of at least 0"),
    "fractional": (1.5, ArgumentTypeError, "`protected` must be an integer"),
    "a float": (8.0, ArgumentTypeError, "`protected` must be an integer"),
    "a word": (
        "all",
        ArgumentValueError,
        "`protected` must be a number of tokens, 'auto' or None; got 'all'",
    ),
    "fewer than the family knows": (
        0,
        ArgumentValueError,
        "`protected` must be at least 1, the number of prefix tokens of .*got 0",
    ),
}


@pytest.mark.parametrize(("value", "error", "text"), BAD.values(), ids=BAD)
def test_what_is_refused(plain, value, error, text):
    fw, model = plain.fw, plain.model()
    before = fw.fingerprint(model)
    with pytest.raises(error, match=text):
        fw.tome.apply_patch(model, protected=value)
    assert fw.fingerprint(model) == before
    fw.tome.apply_patch(model, protected=3)
    with pytest.raises(error, match=text):
        fw.tome.apply_patch(model, protected=value)
    assert model.tome.protected == 3


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_fewer_or_more_than_there_are(plain):
    fw, model = plain.fw, plain.patched(r=4, protected=66)
    with pytest.raises(
        ArgumentValueError, match="`protected` is 66, but the first block got only 65 tokens"
    ):
        fw.forward(model, plain.images())
    fw.tome.apply_patch(model, protected=4)
    hook = fw.pre_hook(model.blocks[0], with_more_in_front(plain, model))
    with pytest.raises(UnsupportedModelError, match=r"8 others\. Only 4 .* \(protected=4\)"):
        fw.forward(model, plain.images())
    hook.remove()
    fw.forward(model, plain.images())
