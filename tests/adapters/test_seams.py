"""``model.tome`` and ``tomecore.adapters`` for tools: watch merges, time the parts, compare."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

import tomecore.adapters
from adapters.cases import OWN, by_name
from adapters.frameworks import TORCH
from tomecore.adapters import PARTS, handle_of, is_patched
from tomecore.adapters.families.timm.vit import VIT
from tomecore.errors import ArgumentTypeError, LostStateError, NotPatchedError


def one(tower):
    return 1


def nothing(tower):
    return None


def test_every_merge_is_seen_in_order(plain):
    model, seen, more = plain.patched(r=[8, 0, 8, 8]), [], []
    with model.tome.watch(lambda layer, key, plan, sizes, x: seen.append((layer, x.shape[1]))):
        with model.tome.watch(lambda *merge: more.append(merge)):
            plain.fw.forward(model, plain.images())
        plain.fw.forward(model, plain.images())
    plain.fw.forward(model, plain.images())
    assert seen == [(0, 57), (2, 49), (3, 41)] * 2
    assert len(more) == 3
    layer, key, plan, sizes, x = more[-1]
    assert layer == 3
    assert key.shape[1] == plan.slots.shape[1] == 49
    assert plan.num_slots == sizes.shape[1] == x.shape[1] == 41
    assert np.array_equal(plain.fw.numpy(sizes), plain.fw.numpy(model.tome.sizes))


def test_an_observer_is_gone_after_an_error(plain):
    model = plain.patched(r=8)

    def observer(*merge):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), model.tome.watch(observer):
        plain.fw.forward(model, plain.images())
    plain.fw.forward(model, plain.images())


def test_parts_are_timed_within_the_context_only(plain):
    model, waited = plain.patched(r=8), []
    with model.tome.timings(lambda: waited.append(1)) as seconds:
        plain.fw.forward(model, plain.images())
    assert list(seconds) == list(PARTS)
    whole = seconds["all of the merge"]
    assert whole >= sum(seconds[part] for part in PARTS[1:5]) > 0
    assert all(seconds[part] > 0 for part in ("log of sizes", "following tokens", "restore"))
    assert len(waited) > 2 * 4
    before, count = dict(seconds), len(waited)
    plain.fw.forward(model, plain.images())
    assert seconds == before
    assert len(waited) == count


def test_a_copy_is_not_watched_and_not_timed(plain):
    model, seen = plain.patched(r=8), []
    with model.tome.watch(lambda *merge: seen.append(merge)), model.tome.timings() as seconds:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for one in copies:
            plain.fw.forward(one, plain.images())
        assert not seen
        assert not any(seconds.values())


def test_sizes_that_do_not_count_for_a_while(plain):
    model = plain.patched(r=8)
    expected = plain.fw.forward(model, plain.images())
    with model.tome.with_prop_attn(False):
        without = plain.fw.forward(model, plain.images())
        assert model.tome.prop_attn is False
    assert model.tome.prop_attn is True
    assert np.array_equal(plain.fw.forward(model, plain.images()), expected)
    assert np.array_equal(
        without, plain.fw.forward(plain.patched(r=8, prop_attn=False), plain.images())
    )
    with pytest.raises(ArgumentTypeError, match="`prop_attn` must be True"):
        model.tome.with_prop_attn(3).__enter__()


@pytest.mark.parametrize("matching", ["tome", "drop_similar"])
def test_apply_patch_ends_free_drop(plain, matching):
    model = plain.patched(r=8, matching=matching)
    expected = plain.fw.forward(model, plain.images())
    model.tome.free_drop()
    assert model.tome.restore is False
    assert not np.array_equal(plain.fw.forward(model, plain.images()), expected)
    plain.fw.tome.apply_patch(model)
    assert model.tome.matching == matching
    assert np.array_equal(plain.fw.forward(model, plain.images()), expected)


def test_a_handle_of_any_framework(plain):
    model = plain.model()
    assert not is_patched(model)
    with pytest.raises(NotPatchedError, match=r"`mine` \(VisionTransformer\) is not patched"):
        handle_of(model, "mine")
    plain.fw.tome.apply_patch(model, r=8)
    assert is_patched(model)
    assert not is_patched(model.blocks[0])
    plain.fw.forward(model, plain.images())
    tome = handle_of(model)
    assert (tome.r, tome.num_tokens, tome.layers, tome.token_axis) == (8, 65, "blocks", 1)
    assert tome.blocks == list(model.blocks)
    assert tome.restore
    plain.fw.tome.remove_patch(model)
    assert not is_patched(model)


def test_functions_of_an_adapter_are_pickled_by_name(plain):
    """They are methods of one object for each framework."""
    function = pickle.loads(pickle.dumps(plain.fw.tome.apply_patch))
    assert function == plain.fw.tome.apply_patch


@pytest.mark.parametrize("name", ["handle", "register"])
def test_what_each_adapter_has_for_itself_is_looked_for_there(name):
    with pytest.raises(AttributeError, match="import the framework's module"):
        getattr(tomecore.adapters, name)


def test_a_module_between_the_tower_and_its_blocks_that_was_replaced():
    """It is called like a model of its own, and ``remove_patch`` finds it again."""
    fw, case = TORCH, by_name(OWN)["torch-plain"]

    class Inner(torch.nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.layers = blocks

        def forward(self, x):
            found = []
            for block in self.layers:
                x = block(x)
                found.append(x)
            return x, {"hidden": found}

    class Tower(torch.nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.encoder = Inner(blocks)

        def forward(self, x):
            return self.encoder(x)[0]

    spec = dataclasses.replace(
        VIT,
        family="mine",
        towers={f"{Tower.__module__}.{Tower.__qualname__}": "encoder.layers"},
        prefix=one,
        patches="",
        tower_mixin=None,
        trim=None,
        why_restore=nothing,
    )
    fw.tome.register(spec)
    try:
        model, x = Tower(case.model().blocks).eval(), torch.randn(2, 65, 32, dtype=torch.float64)
        fw.tome.apply_patch(model, r=8)
        assert model(x).shape == x.shape
        with pytest.raises(LostStateError, match="in one of its outputs"):
            model.encoder(x)
        old, new = model.encoder, Inner(model.encoder.layers)
        model.encoder = new
        fw.tome.remove_patch(model)
        assert type(old) is Inner
        assert not [name for name in vars(old) if name.startswith("_tome")]
    finally:
        fw.tome.HOST.registered.clear()
