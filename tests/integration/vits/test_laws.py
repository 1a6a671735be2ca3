"""The laws of ``tests/adapters/laws`` on the models of real libraries: see ``cases.py``."""

from __future__ import annotations

import pytest
from adapters.cases import one_of_each_spec
from adapters.laws import Laws, LawsOfPlainViTs, LawsOfSpecs
from adapters.laws.outputs import Shapes

import tomecore.adapters.paddle
import tomecore.adapters.torch
from vits.cases import MORE, PLAIN, SINGLE
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
