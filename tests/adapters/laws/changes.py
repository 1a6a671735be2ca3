"""Law 13, of blocks: what is changed after apply_patch has its effect, or the next forward says so."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.changes import (
    around,
    calling_through,
    module_at,
    own_forward,
    replaced,
    without_masks,
)
from adapters.laws.base import ForEachCase
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import (
    NoForwardError,
    UnsupportedModelError,
)

WAY_OUT = r"Undo the change, or set model\.r = 0"


def spec_of(case, model):
    spec, _, _ = find_tower(case.fw.tome.HOST, case.fw.tome.SPECS, model)
    return spec


def bypassed(case, model):
    """Paths below a block of what its halves bypass while there is a bias."""
    spec = spec_of(case, model)
    return [*spec.bypasses, *spec.bypasses_biased]


def merging(case, **settings):
    """A merging model in which every block but the first attends with a bias."""
    return case.patched(r=4, prop_attn=True, **settings)


def refused_until_undone(case, model, change, text):
    """While ``change`` lasts, merging is refused in words and r=0 runs; afterwards all is as before."""
    fw, images = case.fw, case.images()
    expected = fw.forward(model, images)
    with change:
        with pytest.raises(UnsupportedModelError, match=text) as raised:
            fw.forward(model, images)
        assert "blocks.1" not in str(raised.value)  # a place as a user writes it: blocks[1]
        assert "[1]" in str(raised.value)
        model.r = 0
        assert np.isfinite(fw.forward(model, images)).all()
        model.r = 4
    assert np.array_equal(fw.forward(model, images), expected)


def called(case, model):
    """Path of the attention that a half calls as a module with the bias; "" if it bypasses it."""
    spec = spec_of(case, model)
    return "" if spec.bypasses or spec.bypasses_biased else spec.attention


class Changes(ForEachCase):
    """Changes that users make to a block or to a module in it."""

    def test_a_bypassed_module_that_is_replaced(self, case):
        model = merging(case)
        for path in bypassed(case, model):
            parent, name, module = module_at(case.blocks(model)[1], path)
            change = replaced(parent, name, around(case.fw, module))
            refused_until_undone(case, model, change, rf"Around\) was replaced .*{WAY_OUT}")

    def test_a_bypassed_module_with_a_forward_of_its_own(self, case):
        model, calls = merging(case), []
        for path in bypassed(case, model):
            *_, module = module_at(case.blocks(model)[1], path)
            change = own_forward(module, calling_through(calls))
            refused_until_undone(case, model, change, f"has a forward of its own.*{WAY_OUT}")
        assert bool(calls) == bool(bypassed(case, model))  # with r=0 it ran

    @pytest.mark.parametrize("kind", ["pre_hook", "post_hook"])
    def test_a_bypassed_module_with_a_hook(self, case, kind):
        fw, model = case.fw, merging(case)
        expected = fw.forward(model, case.images())
        for path in bypassed(case, model):
            *_, module = module_at(case.blocks(model)[1], path)
            hook = getattr(fw, kind)(module, lambda *_: None)
            with pytest.raises(UnsupportedModelError, match=r"has a forward hook.*remove the hook"):
                fw.forward(model, case.images())
            hook.remove()
        assert np.array_equal(fw.forward(model, case.images()), expected)

    def test_a_bypassed_module_with_another_child(self, case):
        fw, model = case.fw, merging(case)
        for path in bypassed(case, model):
            *_, module = module_at(case.blocks(model)[1], path)
            module.add_module("adapter", fw.linear(4, 4)) if fw.name == "torch" else (
                module.add_sublayer("adapter", fw.linear(4, 4))
            )
            with pytest.raises(UnsupportedModelError, match=f"got or lost children.*{WAY_OUT}"):
                fw.forward(model, case.images())
            delattr(module, "adapter")
        assert np.isfinite(fw.forward(model, case.images())).all()

    def test_a_bypassed_class_that_is_monkeypatched(self, case, monkeypatch):
        fw, model = case.fw, merging(case)
        for path in bypassed(case, model):
            *_, module = module_at(case.blocks(model)[1], path)
            if type(module).__name__ == "Sequential":  # as the list of blocks is
                continue
            with monkeypatch.context() as patched:
                forward = type(module).forward
                patched.setattr(
                    type(module),
                    "forward",
                    lambda *args, forward=forward, **kw: forward(*args, **kw),
                )
                with pytest.raises(UnsupportedModelError, match="its class got another forward"):
                    fw.forward(model, case.images())
        assert np.isfinite(fw.forward(model, case.images())).all()

    def test_a_block_class_that_is_monkeypatched(self, case, monkeypatch):
        fw, model = case.fw, merging(case)
        cls = type(case.blocks(model)[1])._tome_original
        monkeypatch.setattr(cls, "forward", lambda self, x, *args, **kwargs: x)
        with pytest.raises(
            UnsupportedModelError, match=rf"{cls.__qualname__}\.forward was replaced"
        ):
            fw.forward(model, case.images())

    def test_a_block_that_is_given_a_child(self, case):
        fw, model = case.fw, merging(case)
        block = case.blocks(model)[1]
        block.adapter = fw.linear(32, 32)
        with pytest.raises(
            UnsupportedModelError, match="a child of the block was added or removed"
        ):
            fw.forward(model, case.images())
        delattr(block, "adapter")
        assert np.isfinite(fw.forward(model, case.images())).all()

    def test_a_block_with_a_forward_that_calls_the_one_it_replaces(self, case):
        fw, model, calls = case.fw, merging(case), []
        expected = fw.forward(model, case.images())
        with own_forward(case.blocks(model)[1], calling_through(calls)):
            assert np.array_equal(fw.forward(model, case.images()), expected)
        assert len(calls) == 1
        assert len(model.tome.tokens) == 4

    @pytest.mark.parametrize("which", [[1], [0, 1, 2, 3]], ids=["one", "all"])
    def test_a_block_with_a_forward_of_its_own(self, case, which):
        """The adapter recipes: at r=4 the adapted blocks would attend to merged tokens as if to others."""
        fw, model, images = case.fw, merging(case), case.images()
        expected, calls = fw.forward(model, images), []

        def forward(self, *args, **kwargs):
            calls.append(self)
            return type(self)._tome_original.forward(self, *args, **kwargs)

        changes = [own_forward(case.blocks(model)[index], forward) for index in which]
        for change in changes:
            change.__enter__()
        text = (
            rf"\[{which[0]}\] .* has a forward of its own, which does not call the one that merges"
        )
        with pytest.raises(UnsupportedModelError, match=text):
            fw.forward(model, images)
        with pytest.raises(NoForwardError, match="raised UnsupportedModelError in block"):
            model.tome.tokens  # noqa: B018
        model.r = 0
        assert np.array_equal(fw.forward(model, images), fw.forward(case.model(), images))
        if len(which) == 4:
            with pytest.raises(NoForwardError, match="ran none of its patched blocks"):
                model.tome.tokens  # noqa: B018
        for change in changes:
            change.__exit__(None, None, None)
        model.r = 4
        assert np.array_equal(fw.forward(model, images), expected)

    def test_a_called_attention_with_a_forward_that_calls_the_one_it_replaces(self, case):
        fw, model, calls = case.fw, merging(case), []
        path = called(case, model)
        if path:
            expected = fw.forward(model, case.images())
            *_, module = module_at(case.blocks(model)[1], path)
            with own_forward(module, calling_through(calls)):
                assert np.array_equal(fw.forward(model, case.images()), expected)
            assert calls == [module]

    def test_a_called_attention_that_ignores_the_sizes(self, case):
        """Keys exist and tokens merge, but attention would count a merged token once."""
        model = merging(case)
        path = called(case, model)
        if path:
            *_, module = module_at(case.blocks(model)[1], path)
            change = own_forward(module, without_masks)
            refused_until_undone(case, model, change, "ignores the mask that holds the sizes")

    def test_a_called_attention_that_takes_no_mask(self, case):
        def forward(self, x):
            return type(self).forward(self, x)

        fw, model = case.fw, merging(case)
        path = called(case, model)
        if path:
            *_, module = module_at(case.blocks(model)[1], path)
            with (
                own_forward(module, forward),
                pytest.raises(UnsupportedModelError, match="cannot be called with the sizes"),
            ):
                fw.forward(model, case.images())

    def test_a_called_attention_around_which_an_adapter_is_put(self, case):
        fw, model = case.fw, merging(case)
        path = called(case, model)
        if path:
            expected = fw.forward(model, case.images())
            parent, name, module = module_at(case.blocks(model)[1], path)
            with replaced(parent, name, around(fw, module)):
                assert np.array_equal(fw.forward(model, case.images()), expected)
