"""Laws 4 and 9: remove leaves no trace, copies are independent, what merging would break is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from adapters.laws.base import ForEachCase
from tomecore.adapters.engine.swap import original_class
from tomecore.errors import (
    NoForwardError,
    NotPatchedError,
    UnsupportedModelError,
)


def leftovers(fw, model):
    """Attributes of ours anywhere in the model."""
    return [
        f"{path}.{name}"
        for path, module in fw.modules(model).items()
        for name in (*vars(module), *dir(type(module)))
        if "tome" in name.lower()
    ]


def hook_counts(fw, model):
    found = fw.fingerprint(model)
    return {path: list(map(len, v[2])) for path, v in found.items() if path != "parameters"}


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def check_copy(case, duplicate):
    fw, images = case.fw, case.images()
    model = case.patched(r=8, trace_source=True)
    output = fw.forward(model, images)
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert twin.r == 8
    with pytest.raises(NoForwardError, match="no forward pass"):
        twin.tome.sizes  # noqa: B018
    assert model.tome.tokens  # the original's results are still there

    assert np.array_equal(fw.forward(twin, images), output)
    twin.r = 4
    assert model.r == 8
    assert not np.allclose(fw.forward(twin, images), output)
    sizes = fw.numpy(model.tome.sizes)
    assert sizes.shape != fw.numpy(twin.tome.sizes).shape
    model.r = 0
    assert twin.r == 4
    fw.tome.remove_patch(model)
    assert leftovers(fw, model) == []
    assert twin.tome.tokens[0] == case.num_tokens() - 4
    fw.tome.remove_patch(twin)
    assert leftovers(fw, twin) == []
    assert hook_counts(fw, twin) == hook_counts(fw, model) == hook_counts(fw, case.model())
    assert np.array_equal(fw.forward(twin, images), fw.forward(model, images))


def subclass(obj, **members):
    """Make ``obj`` an instance of a subclass of its class."""
    obj.__class__ = type("Own", (type(obj),), members)


def only_returns(self, x):
    return x


GENERIC = {
    "unknown child": (
        lambda fw, block: setattr(block, "adapter", fw.linear(32, 32)),
        r"\[1\] has a child 'adapter' \(.*Linear\) that tomecore does not know",
    ),
    "own parameter": (
        lambda fw, block: setattr(block, "unheard_of", fw.parameter()),
        r"\[1\] has parameters or buffers of its own \(unheard_of\)",
    ),
    "other forward": (
        lambda fw, block: subclass(block, forward=only_returns),
        r"\[1\] is a .*Own, whose forward is not one that tomecore knows",
    ),
}


def check_refused(fw, model, text, **settings):
    before = fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text):
        fw.tome.apply_patch(model, **settings)
    assert fw.fingerprint(model) == before


class Lifecycle(ForEachCase):
    """The effects of patching on a model."""

    def test_remove_leaves_no_trace(self, case):
        fw, model, images = case.fw, case.model(), case.images()
        inner = list(fw.modules(case.blocks(model)[1]).values())[-1]
        hook = fw.post_hook(inner, lambda *_: None)
        before, output = fw.fingerprint(model), fw.forward(model, images)
        keys = list(model.state_dict())
        assert leftovers(fw, model) == []

        assert fw.tome.apply_patch(model, r=8, trace_source=True) is model
        assert list(model.state_dict()) == keys
        assert leftovers(fw, model)
        fw.forward(model, images)
        assert fw.tome.remove_patch(model) is model

        assert fw.fingerprint(model) == before
        assert leftovers(fw, model) == []
        assert list(model.state_dict()) == keys
        assert np.array_equal(fw.forward(model, images), output)
        assert not hasattr(model, "r")
        assert not hasattr(model, "tome")
        hook.remove()

    def test_patched_classes_keep_their_names(self, case):
        model = case.model()
        classes = [type(module) for module in case.fw.modules(model).values()]
        case.fw.tome.apply_patch(model)
        for module, cls in zip(case.fw.modules(model).values(), classes, strict=True):
            assert isinstance(module, cls)
            for name in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(type(module), name) == getattr(cls, name)
        assert len({type(block) for block in case.blocks(model)}) == 1

    def test_applying_twice_stacks_nothing(self, case):
        fw, model, images = case.fw, case.model(), case.images()
        before = fw.fingerprint(model)
        fw.tome.apply_patch(model, r=8, prop_attn=False, trace_source=True)
        once, hooks, output = (
            fw.fingerprint(model),
            hook_counts(fw, model),
            fw.forward(model, images),
        )
        fw.tome.apply_patch(model, prop_attn=False, trace_source=True)
        again = fw.fingerprint(model)
        assert {path: value[:2] for path, value in again.items()} == {
            path: value[:2] for path, value in once.items()
        }
        assert hook_counts(fw, model) == hooks
        assert model.r == 8
        assert np.array_equal(fw.forward(model, images), output)
        fw.tome.remove_patch(model)
        assert fw.fingerprint(model) == before
        with pytest.raises(
            NotPatchedError, match=r"is not patched; call apply_patch\(model\) first"
        ):
            fw.tome.remove_patch(model)

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
    def test_copies_are_independent_and_still_patched(self, case, duplicate):
        check_copy(case, duplicate)

    @pytest.mark.parametrize(("change", "text"), GENERIC.values(), ids=GENERIC)
    def test_a_changed_block_is_refused_and_untouched(self, case, change, text):
        fw, model = case.fw, case.model()
        change(fw, case.blocks(model)[1])
        check_refused(fw, model, text)

    def test_a_subclass_that_keeps_the_forward_is_fine(self, case):
        fw, model, images = case.fw, case.model(), case.images()
        expected = fw.forward(case.patched(r=8), images)
        for block in case.blocks(model):
            subclass(block, extra_repr=lambda self: "mine")
        subclass(model)
        classes = [type(model), type(case.blocks(model)[0])]
        fw.tome.apply_patch(model, r=8)
        assert np.array_equal(fw.forward(model, images), expected)
        fw.tome.remove_patch(model)
        assert [type(model), type(case.blocks(model)[0])] == classes
        assert original_class(model) is classes[0]
