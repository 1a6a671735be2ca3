"""Who holds what: parts of patched models, copies of blocks, memory, and threads."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch

from adapters.cases import OWN, by_name
from tomecore.errors import (
    ClampWarning,
    InnerHookWarning,
    LostStateError,
    NoForwardError,
    NotPatchedError,
    UnsupportedModelError,
)

TORCH_PLAIN = by_name(OWN)["torch-plain"]


@pytest.fixture
def whole(plain):
    """A patched module around a tower, and the tower."""
    tower = plain.model()
    outer = plain.fw.container(backbone=tower)
    plain.fw.tome.apply_patch(outer, r=8)
    return outer, tower


def test_a_part_of_a_patched_model_that_is_still_there(plain, whole):
    outer, tower = whole
    name = type(outer).__name__
    for call in (plain.fw.tome.apply_patch, plain.fw.tome.remove_patch):
        with pytest.raises(UnsupportedModelError) as raised:
            call(tower)
        words = str(raised.value)
        assert (
            f"`model` (VisionTransformer) is part of a {name} that was patched as a whole" in words
        )
        assert "call remove_patch on it first" in words
        assert "''" not in words
        assert "model.)" not in words
    assert outer.r == 8
    plain.fw.tome.remove_patch(outer)
    plain.fw.tome.apply_patch(tower, r=2)
    tower(plain.tensors())
    assert tower.tome.tokens == [63, 61, 59, 57]


@pytest.mark.parametrize("how", ["taken out", "copied", "pickled"])
def test_a_part_whose_whole_is_gone(plain, how):
    """As merge_and_unload of an adapter library, or torch.save(net.backbone), leaves it."""
    fw, tower = plain.fw, plain.model()
    expected = fw.forward(tower, plain.images())
    outer = fw.container(backbone=tower)
    fw.tome.apply_patch(outer, r=8)
    if how == "copied":
        tower = copy.deepcopy(tower)
    elif how == "pickled":
        tower = pickle.loads(pickle.dumps(tower))
    del outer
    merged = fw.forward(tower, plain.images())
    assert not np.allclose(merged, expected)
    fw.tome.apply_patch(tower)
    assert tower.r == 8
    assert np.array_equal(fw.forward(tower, plain.images()), merged)
    fw.tome.apply_patch(tower, r=2)
    tower(plain.tensors())
    assert tower.tome.tokens == [63, 61, 59, 57]
    fw.tome.remove_patch(tower)
    assert np.array_equal(fw.forward(tower, plain.images()), expected)
    assert not [
        name for module in fw.modules(tower).values() for name in vars(module) if "tome" in name
    ]


def test_a_part_whose_whole_is_gone_is_unpatched(plain):
    fw, tower = plain.fw, plain.model()
    before = fw.fingerprint(tower)
    outer = fw.container(backbone=tower)
    fw.tome.apply_patch(outer, r=8)
    del outer
    fw.tome.remove_patch(tower)
    assert fw.fingerprint(tower) == before
    with pytest.raises(NotPatchedError):
        fw.tome.remove_patch(tower)


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


def test_a_copied_block_does_not_bring_the_model_along(plain):
    model = plain.patched(depth=12, r=1)
    model(plain.tensors())
    twin = copy.deepcopy(model.blocks[3])
    blocks = vars(twin)["_tome"].blocks
    assert [block for block in blocks if block is not None] == [twin]
    if plain.fw.name == "torch":  # parameters of Paddle do not pickle by themselves
        unpatched = pickle.dumps(plain.model(depth=12).blocks[3])
        assert len(pickle.dumps(model.blocks[3])) < 1.5 * len(unpatched)


def test_a_model_is_freed_without_the_collector(plain):
    fw = plain.fw
    gc.collect()
    gc.disable()
    try:
        model = plain.patched(r=8)
        model(plain.tensors())
        model.r = 4
        alive = [weakref.ref(module) for module in (model, *model.blocks, model.blocks[0].attn)]
        del model
        assert [ref() for ref in alive] == [None] * 6
    finally:
        gc.enable()
    assert fw.name in ("torch", "paddle")


def test_keys_are_let_go_before_the_other_half(case):
    """They are a view of queries, keys and values: the largest activation beside the MLP's."""
    fw, model, held = case.fw, case.patched(r=8), []

    def remember(module, args, y):
        held.append(weakref.ref(y))

    for block in model.blocks:
        fw.post_hook(block.attn.qkv, remember)
        fw.pre_hook(block.mlp, lambda *_: alive.append(held[-1]() is not None))
    alive = []
    with no_gradients(fw):
        model(case.tensors())
    assert alive == [False] * 4


def no_gradients(fw):
    if fw.name == "torch":
        return torch.no_grad()
    import paddle

    return paddle.no_grad()


def test_overlapping_contexts_of_all_tokens(plain):
    """Asynchronous tasks leave in any order, and a generator may never be resumed."""
    fw, model, seen = plain.fw, plain.patched(r=8), []
    fw.post_hook(model.blocks[1], lambda *given: seen.append(given[-1].shape[1]))

    async def task(mine, other):
        with model.tome.all_tokens():
            mine.set()
            await other.wait()
            model(plain.tensors())

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        await asyncio.gather(task(a, b), task(b, a))

    def reading():
        with model.tome.all_tokens():
            yield

    asyncio.run(both())
    first, second = reading(), reading()
    next(first)
    next(second)
    model(plain.tensors())
    del first
    second.close()
    abandoned = reading()
    next(abandoned)
    thread = threading.Thread(target=abandoned.close)  # the thread that happens to collect it
    thread.start()
    thread.join()
    model(plain.tensors())
    assert seen == [65, 65, 65, 49]


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


def test_clamp_warnings_end(plain):
    """A schedule drawn anew in each step would fill the log, and memory."""
    model = plain.patched()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ClampWarning)
        for extra in range(30):
            model.r = [40 + extra]
            model(plain.tensors(1))
    assert len(caught) == 8
    assert "will not be reported" in str(caught[-1].message)


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
