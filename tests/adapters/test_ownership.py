"""Who holds what: parts of patched models, copies of blocks, memory, and threads."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch

from adapters.cases import OWN, by_name
from tomecore.errors import (
    InnerHookWarning,
    LostStateError,
    NoForwardError,
)

TORCH_PLAIN = by_name(OWN)["torch-plain"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_one_block(plain, duplicate):
    """It does not bring the model along, runs as it was with r=0, and says what to do otherwise."""
    fw, model = plain.fw, plain.patched(r=8)
    x = fw.tokens(model, plain.images())
    alone = [duplicate(model.blocks[index]) for index in (0, 2)]
    for block in alone:
        with pytest.raises(
            LostStateError, match=r"model that it belongs to now|without their sizes"
        ):
            block(x)
    model.r = 0
    for block in [duplicate(model.blocks[index]) for index in (0, 2)]:
        assert np.isfinite(fw.numpy(block(x))).all()
    other = plain.model()
    blocks = list(other.blocks)
    blocks[2] = alone[1]
    other.blocks = type(other.blocks)(*fw.listed(blocks))
    fw.tome.apply_patch(other, r=4)
    other(plain.tensors())
    assert other.tome.tokens == [61, 57, 53, 49]


def test_a_hook_inside_a_block_is_told_that_it_sees_merged_tokens(plain):
    fw, model, seen = plain.fw, plain.patched(r=8), []
    hooked = model.blocks[3].norm1
    fw.post_hook(hooked, lambda *given: seen.append(given[-1].shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", InnerHookWarning)
        model(plain.tensors())
        with (
            pytest.raises(InnerHookWarning, match=r"blocks\[3\]\.norm1 has a hook"),
            model.tome.all_tokens(),
        ):
            model(plain.tensors())
    assert seen == [41]


@pytest.mark.graph
def test_compiled_passes_are_those_of_their_thread():
    """One thread runs a compiled model, another the model itself: each sees its own last pass."""
    model, images = TORCH_PLAIN.patched(r=8), TORCH_PLAIN.tensors()
    compiled = torch.compile(model, backend="eager")
    ran, go_on, found = threading.Event(), threading.Event(), []

    def eager():
        model(images)
        ran.set()
        go_on.wait(60)
        found.append(model.tome.tokens)

    thread = threading.Thread(target=eager)
    thread.start()
    ran.wait(60)
    model(images)
    assert model.tome.tokens == [57, 49, 41, 33]
    for _ in range(2):  # the second time from the cache of graphs
        compiled(images)
        with pytest.raises(
            NoForwardError, match="compiled or exported graph, which keeps no results"
        ):
            model.tome.tokens  # noqa: B018
    go_on.set()
    thread.join(60)
    assert found == [[57, 49, 41, 33]]
    model(images)
    assert model.tome.tokens == [57, 49, 41, 33]
