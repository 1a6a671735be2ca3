"""Fixtures: ``kind`` is the model of every library in turn, ``vit`` one of them."""

from __future__ import annotations

import pytest
import torch

from production.models import KINDS, kind_named

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    """The model of each library."""
    return request.param


@pytest.fixture
def vit():
    """timm's plain ViT, if the library does not matter."""
    return kind_named("timm-vit")


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()
