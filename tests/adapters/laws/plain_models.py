"""Laws for the plain ViT of each library: golden numbers, ownership, recomputation of whole models."""

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

from adapters.cases import golden_runs
from adapters.laws.base import ForEachCase
from adapters.laws.gradients import REENTRANT, assert_same, in_training
from tomecore.errors import (
    ClampWarning,
    NotPatchedError,
    UnsupportedModelError,
)

TOLERANCE = 1e-11


def load(case, golden):
    """The golden model of the case's framework, with its arrays and runs."""
    arrays, config = golden(f"vit_{case.fw.name}")
    model = case.fw.double(case.golden(**config["model"]))
    start = "weights."
    weights = {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
    case.fw.load(model, weights)
    model.eval()
    return model, arrays, golden_runs(config)


class PlainModels(ForEachCase):
    """Laws for which the kind of block does not matter."""

    def test_the_unpatched_model_is_the_published_one(self, plain, golden):
        model, arrays, _ = load(plain, golden)
        output = plain.fw.forward(model, arrays["image"])
        np.testing.assert_allclose(output, arrays["logits_unpatched"], rtol=0, atol=TOLERANCE)

    @pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
    @pytest.mark.parametrize("run", range(14))
    def test_every_run(self, plain, golden, run):
        fw = plain.fw
        model, arrays, runs = load(plain, golden)
        assert len(runs) == 14
        name, r, prop_attn = runs[run]
        fw.tome.apply_patch(model, r=r, prop_attn=prop_attn, trace_source=True)
        output = fw.forward(model, arrays["image"])
        np.testing.assert_allclose(output, arrays[f"{name}.logits"], rtol=0, atol=TOLERANCE)
        assert np.array_equal(fw.numpy(model.tome.sizes), arrays[f"{name}.size"][:, :, 0])
        if fw.name == "torch":  # the Paddle reference does not trace
            source = arrays[f"{name}.source"].argmax(axis=1)
            assert np.array_equal(fw.numpy(model.tome.source), source)

    @pytest.fixture
    def whole(self, plain):
        """A patched module around a tower, and the tower."""
        tower = plain.model()
        outer = plain.fw.container(backbone=tower)
        plain.fw.tome.apply_patch(outer, r=8)
        return outer, tower

    def test_a_part_of_a_patched_model_that_is_still_there(self, plain, whole):
        outer, tower = whole
        name = type(outer).__name__
        for call in (plain.fw.tome.apply_patch, plain.fw.tome.remove_patch):
            with pytest.raises(UnsupportedModelError) as raised:
                call(tower)
            words = str(raised.value)
            assert (
                f"`model` (VisionTransformer) is part of a {name} that was patched as a whole"
                in words
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
    def test_a_part_whose_whole_is_gone(self, plain, how):
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

    def test_a_part_whose_whole_is_gone_is_unpatched(self, plain):
        fw, tower = plain.fw, plain.model()
        before = fw.fingerprint(tower)
        outer = fw.container(backbone=tower)
        fw.tome.apply_patch(outer, r=8)
        del outer
        fw.tome.remove_patch(tower)
        assert fw.fingerprint(tower) == before
        with pytest.raises(NotPatchedError):
            fw.tome.remove_patch(tower)

    def test_a_copied_block_does_not_bring_the_model_along(self, plain):
        model = plain.patched(depth=12, r=1)
        model(plain.tensors())
        twin = copy.deepcopy(model.blocks[3])
        blocks = vars(twin)["_tome"].blocks
        assert [block for block in blocks if block is not None] == [twin]
        if plain.fw.name == "torch":  # parameters of Paddle do not pickle by themselves
            unpatched = pickle.dumps(plain.model(depth=12).blocks[3])
            assert len(pickle.dumps(model.blocks[3])) < 1.5 * len(unpatched)

    def test_a_model_is_freed_without_the_collector(self, plain):
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

    def test_overlapping_contexts_of_all_tokens(self, plain):
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

    def test_clamp_warnings_end(self, plain):
        """A schedule that is drawn in each step would fill the log, and memory."""
        model = plain.patched()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ClampWarning)
            for extra in range(30):
                model.r = [40 + extra]
                model(plain.tensors(1))
        assert len(caught) == 8
        assert "will not be reported" in str(caught[-1].message)

    @REENTRANT
    def test_r_changed_before_the_backward_pass_of_a_whole_model(self, plain, reentrant):
        """The images tell the recomputation which pass it repeats; so does the model, if they are new."""
        fw, model = plain.fw, in_training(plain, r=8)

        def loss(region, r):
            model.r, images = r, plain.tensors(seed=r)
            fw.require_gradient(images)
            return (fw.checkpoint(region, images, reentrant=reentrant) ** 2).sum()

        for region in (model, lambda x: model(2 * x)):
            expected = fw.gradients(model, lambda region=region: loss(region, 8))
            lost = loss(region, 8)
            model.r = 4
            assert_same(fw.gradients_of(model, lost), expected)

    @REENTRANT
    def test_two_passes_of_a_whole_model_under_two_values_of_r(self, plain, reentrant):
        fw, model = plain.fw, in_training(plain)

        def gradients(checkpointed):
            total = 0
            for r in (6, 1):
                model.r, images = r, plain.tensors(seed=r)
                fw.require_gradient(images)
                y = (
                    fw.checkpoint(model, images, reentrant=reentrant)
                    if checkpointed
                    else model(images)
                )
                total = total + (y**2).sum()
            return fw.gradients_of(model, total)

        assert_same(gradients(True), gradients(False))

    @REENTRANT
    def test_crops_of_several_sizes_and_a_teacher(self, plain, reentrant):
        """A schedule object gives a different r for each number of tokens, though r was not changed."""
        fw, model = plain.fw, in_training(plain, r=lambda layers, tokens, protected: [tokens // 8])

        def gradients(checkpointed):
            total = 0
            for batch, seed in ((2, 1), (3, 2)):
                images = plain.tensors(batch, seed=seed)
                fw.require_gradient(images)
                y = (
                    fw.checkpoint(model, images, reentrant=reentrant)
                    if checkpointed
                    else model(images)
                )
                total = total + (y**2).sum()
            crops = fw.tensor(fw.numpy(fw.tokens(model, plain.images()))[:, :33])
            x = crops  # the teacher sees fewer tokens
            for block in model.blocks:
                x = block(x)
            return fw.gradients_of(model, total)

        assert_same(gradients(True), gradients(False))
