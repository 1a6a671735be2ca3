"""The fixtures of ``tests/adapters``, over real models."""

from __future__ import annotations

import pytest
import torch

from vits.cases import PLAIN

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(params=PLAIN, ids=lambda case: case.name)
def case(request):
    """A kind of model of a library."""
    return request.param


@pytest.fixture(params=[c for c in PLAIN if not c.rounds], ids=lambda case: case.name)
def smooth(request):
    """A kind of model that does not round on the way."""
    return request.param


@pytest.fixture(params=[c for c in PLAIN if c.golden], ids=lambda case: case.name)
def plain(request):
    """The plain ViT of each library."""
    return request.param
