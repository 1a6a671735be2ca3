"""Law 9: what merging would break is refused, with the reason, and left as it was."""

from __future__ import annotations

import numpy as np
import pytest

from tomecore.adapters.engine.swap import original_class
from tomecore.errors import ArgumentTypeError, UnsupportedModelError


def subclass(obj, **members):
    """Make ``obj`` an instance of a subclass of its class."""
    obj.__class__ = type("Own", (type(obj),), members)


def replace_child(fw, block, name):
    setattr(block, name, fw.linear(32, 32))


def own_forward(self, x):
    return x


def unknown_child(fw, model):
    model.blocks[2].adapter = fw.linear(32, 32)


def own_parameter(fw, model):
    model.blocks[1].gamma = fw.parameter()


def other_forward(fw, model):
    subclass(model.blocks[3], forward=own_forward)


def other_attention(fw, model):
    subclass(model.blocks[0].attn, forward=own_forward)


def no_blocks(fw, model):
    model.blocks = type(model.blocks)()


def own_r(fw, model):
    model.r = 3


def own_tome(fw, model):
    subclass(model, tome=property(lambda self: "mine"))


REFUSED = {
    "unknown child": (
        unknown_child,
        r"model\.blocks\[2\] has a child 'adapter' \(.*Linear\) that tomecore does not know",
    ),
    "own parameter": (
        own_parameter,
        r"model\.blocks\[1\] has parameters or buffers of its own \(gamma\)",
    ),
    "other forward": (
        other_forward,
        r"model\.blocks\[3\] is a .*Own, whose forward is not one that tomecore knows .*Block",
    ),
    "other attention": (
        other_attention,
        r"model\.blocks\[0\]\.attn is a .*Own; tomecore knows .*Attention",
    ),
    "no blocks": (no_blocks, r"model\.blocks is empty: there is no block to merge in"),
    "own r": (own_r, "has its own attribute 'r', which the patch would hide"),
    "own tome": (own_tome, "has its own attribute 'tome', which the patch would hide"),
} | {
    f"replaced {name}": (
        lambda fw, model, name=name: replace_child(fw, model.blocks[0], name),
        rf"model\.blocks\[0\]\.{name} is a .*\.Linear; tomecore knows .*and merging could break",
    )
    for name in ("norm1", "norm2", "attn", "mlp")
}


@pytest.mark.parametrize(("change", "text"), REFUSED.values(), ids=REFUSED)
def test_a_changed_model_is_refused_and_untouched(case, change, text):
    fw, model = case.fw, case.model()
    change(fw, model)
    check_refused(fw, model, text)


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
        lambda fw, block: subclass(block, forward=own_forward),
        r"\[1\] is a .*Own, whose forward is not one that tomecore knows",
    ),
}


@pytest.mark.parametrize(("change", "text"), GENERIC.values(), ids=GENERIC)
def test_a_changed_block_is_refused_and_untouched(case, change, text):
    fw, model = case.fw, case.model()
    change(fw, case.blocks(model)[1])
    check_refused(fw, model, text)


def check_refused(fw, model, text, **settings):
    before = fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text):
        fw.tome.apply_patch(model, **settings)
    assert fw.fingerprint(model) == before


def test_a_second_patch_checks_again(plain):
    model = plain.patched(r=8)
    unknown_child(plain.fw, model)
    check_refused(plain.fw, model, "has a child 'adapter'", r=4)
    assert model.r == 8


def test_a_subclass_that_keeps_the_forward_is_fine(case):
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


def test_two_towers_are_one_too_many(plain):
    model = plain.fw.container(student=plain.model(), teacher=plain.model())
    text = r"`model` holds 2 vision transformers \(student, teacher\).*on each one separately"
    check_refused(plain.fw, model, text)


def test_a_patched_module_inside_is_named(plain):
    outer = plain.fw.container(inner=plain.patched(r=8))
    text = r"contains 'inner', which is already patched by itself.*remove_patch\(model\.inner\)"
    check_refused(plain.fw, outer, text)
    assert outer.inner.r == 8


def test_no_vision_transformer_at_all(plain):
    fw = plain.fw
    stages = [fw.sequential(fw.linear(4, 4), fw.linear(4, 4)) for _ in range(3)]
    text = (
        r"`model` \(.*Sequential, built from 4 x .*Sequential\) holds no vision transformer that "
        r"tomecore knows, so there is nothing to merge. Supported: .*VisionTransformer"
    )
    check_refused(fw, fw.sequential(*stages), text)


def test_windows_are_named(plain):
    fw = plain.fw
    model = fw.container(stage=fw.linear(4, 4))
    model.stage.window_size = 7
    check_refused(fw, model, r"has a window_size \(.*Linear\): it attends in windows of its grid")


@pytest.mark.parametrize("thing", [None, "model", 16, [], object], ids=repr)
def test_what_is_no_model(fw, thing):
    with pytest.raises(ArgumentTypeError, match=rf"`model` must be a {fw.name}\..*; got builtins"):
        fw.tome.apply_patch(thing)


def test_the_class_instead_of_an_instance(plain):
    with pytest.raises(ArgumentTypeError, match=r"`model` must be a .*; got builtins\.type"):
        plain.fw.tome.apply_patch(type(plain.model()))


def test_a_model_of_the_other_framework(plain, fw):
    if fw is not plain.fw:
        with pytest.raises(ArgumentTypeError, match=rf"`model` must be a {fw.name}\."):
            fw.tome.apply_patch(plain.model())
    else:
        assert fw.tome.apply_patch(plain.model()).r == 0
