"""Law 13, of towers: a block left out, doubled or reordered is right or an error; so are unknown tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapters.frameworks import PADDLE, handed_on
from adapters.laws.base import ForEachCase
from adapters.laws.exactness import twins
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import (
    LostStateError,
    NoForwardError,
    UnsupportedModelError,
)


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


MORE = 7


def with_more_in_front(case, model):
    """Seven more tokens reach the first block, as from a subclass or a prompt."""
    fw = case.fw
    drawn = fw.tensor(np.random.default_rng(5).standard_normal((1, MORE, 32)))

    def hook(module, args):
        x, *rest = args
        first = case.blocks(model)[0] is module
        assert first
        axis = 1 if x.shape[0] == 3 else 0
        more = (
            drawn.expand([3, MORE, 32])
            if axis == 1
            else drawn.expand([3, MORE, 32]).transpose(0, 1)
        )
        parts = [more, x]
        return (joined(fw, parts, axis), *rest)

    return hook


def joined(fw, parts, axis):
    if fw is PADDLE:
        import paddle

        return paddle.concat(parts, axis=axis)

    return torch.cat(parts, axis)


def knows(case, model, spec):
    """Whether the patch embedding of the family runs in this model."""
    from tomecore.adapters.engine.count import modules_around
    from tomecore.adapters.engine.spec import reaches

    _, tower, _ = find_tower(case.fw.tome.HOST, case.fw.tome.SPECS, model)
    return any(
        reaches(module, spec.patches) for module in modules_around(case.fw.tome.HOST, tower, model)
    )


class Passes(ForEachCase):
    """Changes that users make to the list of blocks."""

    @pytest.mark.parametrize("order", [(0, 2, 3), (0, 3), (1, 2, 3)], ids=str)
    def test_a_block_left_out(self, case, order):
        """Layer dropout: of tokens in which merging loses nothing, all come back, with the right numbers."""
        first = order[0]
        model, run, expected = patched(case, [0] * first + [16])
        close(run(order), expected[order])
        there = case.prefix + 48
        assert model.tome.tokens == [case.prefix + 64] * first + [there] * (4 - first)
        close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])

    def test_the_last_block_left_out(self, case):
        """The method would return merged tokens if its blocks did not return all of them."""
        model, run, expected = patched(case, [16])
        if case.dense:
            close(run((0, 1, 2)), expected[0, 1, 2])
            return
        with pytest.raises(
            LostStateError, match="stopped after block 2 of 0 to 3, with merged tokens"
        ):
            run((0, 1, 2))
        with pytest.raises(NoForwardError, match="raised LostStateError"):
            model.tome.tokens  # noqa: B018
        with model.tome.all_tokens():
            close(run((0, 1, 2)), expected[0, 1, 2])
        close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])

    def test_a_block_called_twice(self, case):
        _, run, expected = patched(case, [16])
        with pytest.raises(LostStateError, match=r"\[1\] .* was called after block 1"):
            run((0, 1, 1, 2, 3))
        close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])

    def test_blocks_in_another_order(self, case):
        _, run, expected = patched(case, [16])
        with pytest.raises(LostStateError, match=r"\[1\] .* was called after block 2"):
            run((0, 2, 1, 3))
        close(run((0, 1, 2, 3)), expected[0, 1, 2, 3])

    def test_a_pass_that_raised(self, case):
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

    def test_unannounced_prefix_tokens(self, case):
        """Refused with the number to pass, if the family knows its patches; r=0 still runs."""
        fw, model = case.fw, case.model()
        spec, _, _ = find_tower(fw.tome.HOST, fw.tome.SPECS, model)
        if not spec.patches or case.given is not None or case.dense or not knows(case, model, spec):
            return
        fw.tome.apply_patch(model, r=4, trace_source=True)
        hook = fw.pre_hook(case.blocks(model)[0], with_more_in_front(case, model))
        count = case.prefix + MORE
        with pytest.raises(
            UnsupportedModelError, match=rf"apply_patch\(model, protected={count}\)"
        ):
            fw.forward(model, case.images())
        hook.remove()
        fw.forward(model, case.images())
