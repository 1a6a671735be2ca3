"""If sizes cannot follow the tokens, there is an error, never a silent wrong number."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.laws.state import TEXT
from tomecore.errors import LostStateError


def test_a_callable_schedule_may_merge_so_a_block_by_itself_is_refused(plain):
    model = plain.patched(r=lambda layers, tokens, protected: [0] * layers)
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](plain.fw.tokens(model, plain.images()))


def test_a_hook_that_returns_the_same_tensor(plain):
    fw, model = plain.fw, plain.patched(r=8)
    expected = fw.forward(model, plain.images())
    fw.post_hook(model.blocks[1], lambda module, args, y: y)
    assert np.array_equal(fw.forward(model, plain.images()), expected)


def test_tokens_of_another_length_under_the_same_run(plain):
    fw, model = plain.fw, plain.patched(r=8)
    y = model.blocks[0](fw.tokens(model, plain.images()))
    fewer = y[:, :-1]
    for name, value in vars(y).items():
        if name.startswith("_tome"):
            setattr(fewer, name, value)
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](fewer)


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("r", [8, [8]], ids=str)
def test_a_part_of_the_batch(plain, r, prop_attn):
    """In torch a slice shares its storage, and what rides there, with the whole."""
    fw, model = plain.fw, plain.patched(r=r, prop_attn=prop_attn)
    y = model.blocks[0](fw.tokens(model, plain.images()))
    with pytest.raises(LostStateError, match=TEXT):
        model.blocks[1](y[1:2])


def test_two_patched_blocks_swapped(plain):
    fw, model = plain.fw, plain.patched(r=[4, 0, 0, 8])
    x = fw.tokens(model, plain.images())
    for index in (0, 2):
        x = model.blocks[index](x)
    with pytest.raises(LostStateError, match=r"blocks\[1\] .* was called after block 2"):
        model.blocks[1](x)
