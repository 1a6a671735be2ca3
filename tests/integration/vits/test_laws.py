"""The laws of ``tests/adapters/laws`` on the models of real libraries: see ``cases.py``."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from adapters.cases import Case, one_of_each_spec
from adapters.laws import Laws, LawsOfPlainViTs, LawsOfSpecs
from adapters.laws.outputs import Shapes
from adapters.ways import ways

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters import Spec
from tomecore.adapters.engine.find import find_tower
from vits.cases import LISTS, MORE, PLAIN, SINGLE
from vits.test_every_family import ELSEWHERE


class TestPlain(LawsOfPlainViTs):
    CASES = PLAIN


class TestMore(Laws):
    CASES = MORE


class TestSingle(Shapes):
    """Models that compute in float32 on the way, where the other laws, exact to 1e-12, do not hold."""

    CASES = SINGLE


class TestSpecs(LawsOfSpecs):
    """Each more spec adds about 25 short tests, two seconds."""

    CASES = one_of_each_spec([*PLAIN, *MORE])


@pytest.mark.parametrize(
    "adapter", [tomecore.adapters.torch, tomecore.adapters.paddle], ids=["torch", "paddle"]
)
def test_every_spec_that_bypasses_a_module_has_a_case(adapter):
    here = {case.spec.family for case in TestSpecs.CASES if case.fw.tome is adapter}
    named = {spec.family for spec in adapter.SPECS if spec.bypasses or spec.bypasses_biased}
    assert len(named) >= 8
    assert named - here <= ELSEWHERE.keys()


#: One model of each spec that says when, or by which methods, all tokens of every layer are requested.
READERS = [
    case
    for case in one_of_each_spec([*PLAIN, *MORE])
    if case.spec.tower_mixin is not None or case.spec.dense is not Spec.dense
]


@pytest.mark.parametrize("case", READERS, ids=lambda case: case.name)
def test_a_spec_that_does_not_say_so_is_caught(case, monkeypatch):
    """The law of output shapes sees it in every family: without these fields it fails."""
    spec = case.spec
    monkeypatch.setattr(spec, "tower_mixin", None)
    monkeypatch.setattr(spec, "dense", Spec.dense)
    with pytest.raises(AssertionError, match=r"model\..*\("):
        Shapes().test_every_way_of_calling_gives_the_shapes_it_gave(case)


#: What the search for ways must at least find in a library.
FOUND = {
    "timm-plain": [
        "model.forward_features()",
        "model.forward_intermediates(intermediates_only=True)",
        "model.forward_intermediates(output_fmt='NLC')",
        "model.get_intermediate_layers(return_prefix_tokens=True)",
    ],
    "dinov2-plain": ["model.get_intermediate_layers(n=[0, 2])", "model.__call__(is_training=True)"],
    "open_clip-whole": ["model.clip.encode_image()", "model.clip.visual.forward_intermediates()"],
    "transformers-vit": [
        "model.model.__call__(output_hidden_states=True)",
        "model.model.vit.__call__(return_dict=False)",
    ],
    "transformers-vit-eager": ["model.model.__call__(output_attentions=True)"],
    "passl-dino": ["model.get_intermediate_layers()", "model.get_last_selfattention()"],
    "ppdiffusers-clip": ["model.model.__call__(output_hidden_states=True)"],
}


@pytest.mark.parametrize("name", FOUND)
def test_the_ways_of_a_library_are_found(name):
    (case,) = (case for cases in LISTS.values() for case in cases if case.name == name)
    model = case.model()
    _, tower, blocks = find_tower(case.fw.tome.HOST, case.fw.tome.SPECS, model)
    found = [str(way) for way, _ in ways(case.fw, model, case.tensors(), tower, blocks[0])]
    assert set(FOUND[name]) - set(found) == set()
    assert len(found) == len(set(found))


def test_no_case_is_left_out():
    """Every list of cases in an ``of_<library>.py`` is one that the classes above take."""
    for file in Path(__file__).parent.glob("of_*.py"):
        for name, value in vars(importlib.import_module(f"vits.{file.stem}")).items():
            if isinstance(value, list) and any(isinstance(one, Case) for one in value):
                assert name in LISTS, (file.name, name)
    known = [case.name for cases in LISTS.values() for case in cases]
    assert len(known) == len(set(known)) >= 120
    taken = [*TestPlain.CASES, *TestMore.CASES, *TestSingle.CASES]
    assert known == [case.name for case in taken]
