"""Law 13, of towers: a block left out, doubled or reordered is right or an error; no stale results."""

from __future__ import annotations

import numpy as np
import pytest

from tomecore.errors import LostStateError, NoForwardError


def test_blocks_called_by_hand(plain):
    """Outside a call of the model, it is unknown when a pass ends; model.tome says how far it came."""
    fw, model = plain.fw, plain.patched(r=4)
    x = fw.tokens(model, plain.images())
    for index in (0, 1):
        x = model.blocks[index](x)
    with pytest.raises(NoForwardError, match=r"stopped after block 1 \(of 0 to 3\) with 57 of 65"):
        model.tome.tokens  # noqa: B018
    for index in (2, 3):
        x = model.blocks[index](x)
    assert x.shape[1] == 65
    assert model.tome.tokens == [61, 57, 53, 49]


def test_merged_tokens_that_break_what_comes_behind(plain):
    """The error of the next layer is explained: the last block did not run."""
    fw, model = plain.fw, plain.model()

    def early(self, x):
        for block in list(self.blocks)[:2]:
            x = block(x)
        return x + fw.tensor(np.ones((65, 32)))

    model.__class__ = type("Early", (type(model),), {"early": early})
    fw.tome.apply_patch(model, r=4)
    with pytest.raises(LostStateError, match="stopped after block 1") as raised:
        model.early(fw.tokens(model, plain.images()))
    assert raised.value.__cause__ is not None


def test_without_restore_an_early_exit_hands_on_fewer_tokens(plain):
    fw, model = plain.fw, plain.model()

    def early(self, x):
        for block in list(self.blocks)[:2]:
            x = block(x)
        return x

    model.__class__ = type("Early", (type(model),), {"early": early})
    fw.tome.apply_patch(model, r=4, restore=False)
    assert model.early(fw.tokens(model, plain.images())).shape[1] == 57
    assert model.tome.tokens == [61, 57]


def test_a_second_pass_in_one_call(plain):
    """A pass that was left half-way is noticed when the next begins, too."""
    fw, model = plain.fw, plain.model()

    def twice(self, x):
        early = x
        for block in list(self.blocks)[:2]:
            early = block(early)
        for block in self.blocks:
            x = block(x)
        return early, x

    model.__class__ = type("Twice", (type(model),), {"twice": twice})
    fw.tome.apply_patch(model, r=4)
    x = fw.tokens(model, plain.images())
    with pytest.raises(LostStateError, match="stopped after block 1"):
        model.twice(x)


def test_one_block_twice_in_the_list(plain):
    fw, model = plain.fw, plain.model()
    blocks = list(model.blocks)
    model.blocks = type(model.blocks)(*fw.listed([blocks[0], blocks[1], blocks[1], blocks[2]]))
    before = fw.fingerprint(model)
    with pytest.raises(Exception, match=r"blocks\[2\] is the same block object as .*blocks\[1\]"):
        fw.tome.apply_patch(model, r=4)
    assert fw.fingerprint(model) == before


def test_a_call_that_runs_no_block(plain):
    fw, model = plain.fw, plain.model()

    def forward(self, x, skip=False):
        return x if skip else super(type(self), self).forward(x)

    cls = type(model)
    model.__class__ = type(
        "Skips",
        (cls,),
        {"forward": lambda self, x, skip=False: x if skip else cls.forward(self, x)},
    )
    fw.tome.apply_patch(model, r=4)
    model(plain.tensors())
    assert model.tome.tokens == [61, 57, 53, 49]
    model(plain.tensors(), skip=True)
    with pytest.raises(NoForwardError, match="ran none of its patched blocks"):
        model.tome.tokens  # noqa: B018


def test_a_call_leaves_nothing_behind(plain):
    """Neither the images nor activations are kept once the model has returned."""
    model = plain.patched(r=4)
    model(plain.tensors())
    assert model.tome._config.passes.call.get(False) is None
