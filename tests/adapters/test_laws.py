"""The laws on tomecore's own ViTs, in both frameworks."""

from __future__ import annotations

from adapters.cases import OWN, one_of_each_spec
from adapters.laws import LawsOfPlainViTs, LawsOfSpecs


class TestOwn(LawsOfPlainViTs):
    CASES = OWN


class TestOwnSpecs(LawsOfSpecs):
    CASES = one_of_each_spec(OWN)
