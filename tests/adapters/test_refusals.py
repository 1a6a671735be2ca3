"""Law 9: what merging would break is refused, with the reason, and left as it was."""

from __future__ import annotations

import pytest

from adapters.laws.lifecycle import check_refused
from adapters.laws.plain_blocks import unknown_child
from tomecore.errors import ArgumentTypeError


def test_a_second_patch_checks_again(plain):
    model = plain.patched(r=8)
    unknown_child(plain.fw, model)
    check_refused(plain.fw, model, "has a child 'adapter'", r=4)
    assert model.r == 8


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
        r"tomecore knows, so there is nothing to merge. The supported models are listed in docs/supported.md"
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
