"""Fixtures over tomecore's own ViTs, for tests that are not laws; laws are in ``laws``."""

from __future__ import annotations

import pytest
import torch

from adapters.cases import OWN
from adapters.frameworks import PADDLE, TORCH

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(params=OWN, ids=lambda case: case.name)
def own(request):
    """Each kind of our own ViTs, for what engine and host do and families have no part in."""
    return request.param


@pytest.fixture(params=[c for c in OWN if c.golden], ids=lambda case: case.fw.name)
def plain(request):
    """The plain ViT of each framework, for tests in which the kind of model does not matter."""
    return request.param


@pytest.fixture(params=[TORCH, PADDLE], ids=lambda fw: fw.name)
def fw(request):
    """A framework."""
    return request.param
