"""No law and no case can be forgotten: each runs for every case. Law 12 catches what it is for."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import tomecore.adapters.torch as tome
from adapters import laws, test_laws
from adapters.cases import OWN, TINY, by_name
from adapters.frameworks import TORCH
from adapters.laws import Laws, LawsOfPlainViTs, LawsOfSpecs
from adapters.laws.base import CHOICES, ForEachCase
from adapters.laws.halves import Halves
from adapters.ways import check_shapes
from tomecore.models.torch import VisionTransformer


class Collected:
    """A plugin that notes what pytest collects."""

    def pytest_collection_modifyitems(self, items):
        self.found = [item.nodeid.partition("::")[2] for item in items]


def collected(file):
    """Names of the tests in ``file``, and pytest's exit status."""
    plugin = Collected()
    options = ["--collect-only", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    status = pytest.main([*options, "-p", "no:warnings", str(file)], plugins=[plugin])
    return getattr(plugin, "found", []), status


def laws_of(cls):
    return [name for name in dir(cls) if name.startswith("test_")]


def chosen(cls, law):
    """Names of the cases of ``cls`` that a law is for."""
    (name,) = CHOICES.keys() & inspect.signature(getattr(cls, law)).parameters.keys()
    return [case.name for case in cls.CASES if CHOICES[name](case)]


def test_every_law_runs_for_every_case():
    found, _ = collected(test_laws.__file__)
    for cls in (test_laws.TestOwn, test_laws.TestOwnSpecs):
        for law in laws_of(cls):
            start = f"{cls.__name__}::{law}["
            ids = [name.removeprefix(start).rstrip("]") for name in found if name.startswith(start)]
            for case in chosen(cls, law):
                assert any(case in name for name in ids), (law, case)
    assert len(laws_of(Laws)) >= 22
    assert len(laws_of(LawsOfPlainViTs)) >= len(laws_of(Laws)) + 20
    assert len(laws_of(LawsOfSpecs)) >= 19


PLANTED = """
from adapters.cases import OWN
from adapters.laws import Laws

class Planted(Laws):
    def test_planted({arguments}):
        assert case

class TestPlanted(Planted):
    CASES = {cases}
"""


def test_a_planted_law_is_run_for_every_case(tmp_path):
    file = tmp_path / "test_planted_law.py"
    file.write_text(PLANTED.format(arguments="self, case", cases="OWN"))
    found, status = collected(file)
    assert status == 0
    assert [name for name in found if "test_planted[" in name] == [
        f"TestPlanted::test_planted[{case.name}]" for case in OWN
    ]


@pytest.mark.parametrize(
    ("arguments", "cases", "text"),
    [
        ("self", "OWN", "must take one of case, smooth, plain; it takes none"),
        ("self, case", "[]", "has no case to run for"),
    ],
    ids=["no case taken", "no case there"],
)
def test_a_law_that_would_run_for_nothing_is_an_error(tmp_path, capsys, arguments, cases, text):
    file = tmp_path / f"test_planted_{len(arguments)}_{len(cases)}.py"
    file.write_text(PLANTED.format(arguments=arguments, cases=cases))
    _, status = collected(file)
    assert status != 0
    assert text in capsys.readouterr().out


def test_every_class_of_laws_is_part_of_one_that_runs():
    parts = set()
    for module in pkgutil.iter_modules(laws.__path__):
        found = vars(importlib.import_module(f"adapters.laws.{module.name}")).values()
        parts |= {cls for cls in found if inspect.isclass(cls) and issubclass(cls, ForEachCase)}
    assert len(parts) >= 10
    whole = {*LawsOfPlainViTs.__mro__, *LawsOfSpecs.__mro__}
    assert parts <= whole
    for cls in parts:
        for name, member in vars(cls).items():
            if inspect.isfunction(member):  # a fixture is none
                assert name.startswith(("test_", "_", "pytest_")), name


def test_a_law_is_nowhere_else():
    """A test outside of the classes that takes ``case`` would run for one list of cases only."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if file.stem != "test_trim_last":  # has cases of its own
            found = re.findall(r"def (test_\w+)\([^)]*\bcase\b", file.read_text())
            assert found == [], file.name


# ---- law 16 catches what it is for


@pytest.fixture
def whole():
    """A case whose halves bypass the attention."""
    return by_name(OWN)["paddle-plain"]


def test_a_spec_that_does_not_name_a_bypassed_module_is_caught(whole, monkeypatch):
    monkeypatch.setattr(whole.spec, "bypasses", ())
    with pytest.raises(AssertionError, match=r"merging does not call \['attn'\]; name it in Spec"):
        Halves().test_every_module_that_the_halves_do_not_call_is_named(whole)


def test_an_anatomy_that_leaves_a_part_out_is_caught(whole, monkeypatch):
    anatomy = whole.spec.anatomy
    known = {name: parts[:-1] for name, parts in anatomy.classes.items()}
    monkeypatch.setattr(anatomy, "classes", known)
    with pytest.raises(AssertionError, match=r"holds proj_drop, which .*; name it in Anatomy"):
        Halves().test_the_anatomy_is_that_of_the_attention(whole)


def test_an_anatomy_with_other_rows_is_caught(whole, monkeypatch):
    anatomy, qkv = whole.spec.anatomy, whole.spec.anatomy.qkv

    def last_rows(host, attention, y, given, rows):
        q, k, v, scale = qkv(host, attention, y, given, None)
        return (q if rows is None else q[:, -rows:]), k, v, scale

    monkeypatch.setattr(anatomy, "qkv", last_rows)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        Halves().test_the_anatomy_is_that_of_the_attention(whole)


def test_a_model_that_returns_more_than_one_tensor_is_refused():
    class Two(VisionTransformer):
        def forward(self, x):
            return super().forward(x), x

    case = dataclasses.replace(by_name(OWN)["torch-plain"], build=lambda **sizes: two)
    two = Two.from_config({**TINY, "img_size": 32, "depth": 1, "num_classes": 7})
    message = r"a law reads one tensor; got a tuple\. .*let `build` wrap it .*Case\(layers=\)"
    with pytest.raises(TypeError, match=message):
        TORCH.forward(case.model(), case.images())


# ---- law 12 catches what it is for


class Reader(VisionTransformer):
    """Return the output of every layer on request, as MONAI's ViT does."""

    def forward(self, x, states=False):
        found = []
        hooks = [
            block.register_forward_hook(lambda *given: found.append(given[-1]))
            for block in self.blocks
        ]
        y = super().forward(x)
        for hook in hooks:
            hook.remove()
        return (y, found) if states else y


@pytest.fixture
def registered():
    yield tome.HOST.registered
    tome.HOST.registered.clear()


def check_reader(spec):
    tome.register(spec)
    model = Reader.from_config({**TINY, "img_size": 32, "depth": 4, "num_classes": 7}).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    check_shapes(TORCH, model, images, model, model.blocks[0])


def test_a_spec_that_says_when_all_tokens_are_wanted_keeps_the_shapes(registered):
    spec = by_name(OWN)["torch-plain"].spec
    check_reader(
        dataclasses.replace(spec, family="Reader", towers={Reader: "blocks"}, dense=lambda _: True)
    )


def test_a_spec_that_forgets_when_all_tokens_are_wanted_is_caught(registered):
    spec = by_name(OWN)["torch-plain"].spec
    with pytest.raises(AssertionError, match=r"model\.__call__\(states=True\)"):
        check_reader(dataclasses.replace(spec, family="Reader", towers={Reader: "blocks"}))
