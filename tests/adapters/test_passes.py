"""Law 13, of towers: a block left out, doubled or reordered is right or an error; no stale results."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.frameworks import handed_on
from adapters.test_duplicates import twins
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import LostStateError, NoForwardError


def with_a_method(case, model):
    """The tower, with a method of its own that runs blocks in any order."""
    _, tower, _ = find_tower(case.fw.tome.HOST, case.fw.tome.SPECS, model)
    layers = case.blocks

    def run_blocks(self, x, order):
        given = case.arguments(model, x)
        for index in order:
            x = handed_on(layers(model)[index](x, **given))
        return x

    cls = type(tower)
    members = {"run_blocks": run_blocks, "__module__": cls.__module__}
    tower.__class__ = type(cls.__qualname__, (cls,), members)
    return tower


def patched(case, r):
    """(model, its tower, the output of its blocks in an order without the patch)."""
    model = case.model()
    tower, tokens = with_a_method(case, model), twins(case, 32)

    def run(order):
        return case.fw.numpy(tower.run_blocks(case.fw.tensor(tokens), order))

    expected = {
        order: run(order) for order in ((0, 2, 3), (0, 3), (1, 2, 3), (0, 1, 2), (0, 1, 2, 3))
    }
    case.fw.tome.apply_patch(model, r=r, prop_attn=True)
    return model, run, expected


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("order", [(0, 2, 3), (0, 3), (1, 2, 3)], ids=str)
def test_a_block_left_out(case, order):
    """Layer dropout: of tokens in which merging loses nothing, all come back, with the right numbers."""
    first = order[0]
    model, run, expected = patched(case, [0] * first + [16])
    close(run(order), expected[order])
    there = case.prefix + 48
    assert model.tome.tokens == [case.prefix + 64] * first + [there] * (4 - first)
    close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])


def test_the_last_block_left_out(case):
    """The method would return merged tokens if its blocks did not return all of them."""
    model, run, expected = patched(case, [16])
    if case.dense:
        close(run((0, 1, 2)), expected[0, 1, 2])
        return
    with pytest.raises(LostStateError, match="stopped after block 2 of 0 to 3, with merged tokens"):
        run((0, 1, 2))
    with pytest.raises(NoForwardError, match="raised LostStateError"):
        model.tome.tokens  # noqa: B018
    with model.tome.all_tokens():
        close(run((0, 1, 2)), expected[0, 1, 2])
    close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])


def test_a_block_called_twice(case):
    _, run, expected = patched(case, [16])
    with pytest.raises(LostStateError, match=r"\[1\] .* was called after block 1"):
        run((0, 1, 1, 2, 3))
    close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])


def test_blocks_in_another_order(case):
    _, run, expected = patched(case, [16])
    with pytest.raises(LostStateError, match=r"\[1\] .* was called after block 2"):
        run((0, 2, 1, 3))
    close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])


def test_a_pass_that_raised(case):
    fw, model = case.fw, case.patched(r=4)
    fw.forward(model, case.images())
    assert len(model.tome.tokens) == 4

    def fail(*_):
        raise ZeroDivisionError

    hook = fw.post_hook(case.blocks(model)[2], fail)
    with pytest.raises(ZeroDivisionError):
        fw.forward(model, case.images())
    hook.remove()
    with pytest.raises(NoForwardError, match="raised ZeroDivisionError in block"):
        model.tome.sizes  # noqa: B018
    fw.forward(model, case.images())
    assert len(model.tome.tokens) == 4


def test_blocks_called_by_hand(plain):
    """Outside a call of the model nobody knows when a pass ends; model.tome says how far it came."""
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
    """The error of the layer behind is explained: the last block did not run."""
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
