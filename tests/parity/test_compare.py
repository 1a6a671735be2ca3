"""The comparison finds what differs, where, and how clear the call was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pairs import images, pair, patched_pair

from tomecore import parity
from tomecore.errors import ArgumentValueError, NotPatchedError


@pytest.fixture
def models() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model_a, model_b = patched_pair(depth=4)
    model_a.r = model_b.r = [0, 9, 9, 0]
    return model_a, model_b


def test_reports_only_layers_that_merge(models: tuple[Any, Any]) -> None:
    report = parity.compare(*models, images(3), batch=2)
    assert [(layer.layer, layer.merged, layer.images) for layer in report.layers] == [
        (1, 9, 3),
        (2, 9, 3),
    ]
    assert report.images == 3
    assert report.names == ("torch VisionTransformer", "paddle VisionTransformer")


def test_a_clear_disagreement_has_a_large_gap_at_its_first_layer(models: tuple[Any, Any]) -> None:
    model_a, model_b = models
    with torch.no_grad():
        model_a.blocks[2].attn.qkv.weight.add_(
            0.3 * torch.randn_like(model_a.blocks[2].attn.qkv.weight)
        )
    report = parity.compare(model_a, model_b, images(3))
    first, second = report.layers
    assert first.identical_decisions == 1
    assert first.gaps == ()
    assert second.identical_decisions < 1
    assert len(second.gaps) == 3
    assert min(second.gaps) > 1e-3
    assert report.largest_gap == max(second.gaps)
    assert report.identical_decisions == 0
    assert report.largest_difference > 1e-6


def test_a_near_tie_has_a_small_gap(models: tuple[Any, Any]) -> None:
    """Two patches with the same pixels differ only by rounding, whichever merges first."""
    model_a, model_b = models
    with torch.no_grad():
        noise = torch.randn(model_a.pos_embed.shape, dtype=torch.float64)
        model_a.pos_embed[:, 1:] = model_a.pos_embed[:, 1:2] + 1e-9 * noise[:, 1:]
    parity.transfer_weights(model_a, model_b)
    with torch.no_grad():
        model_a.pos_embed.add_(1e-9 * torch.randn_like(model_a.pos_embed))
    flat = np.ones((2, 3, 56, 56))
    report = parity.compare(model_a, model_b, flat)
    assert report.identical_decisions < 1
    assert 0 < report.largest_gap < 1e-6


def test_report_prints_and_is_plain_data(models: tuple[Any, Any]) -> None:
    report = parity.compare(*models, images(2))
    text = str(report)
    assert "torch VisionTransformer against paddle VisionTransformer, 2 images" in text
    assert "identical decisions 100.00%" in text
    data = json.loads(json.dumps(report.as_dict()))
    assert data["layers"][0]["merged"] == 9
    assert data["largest_gap"] == 0


def test_leaves_the_models_as_they_were(models: tuple[Any, Any]) -> None:
    model_a, model_b = models
    model_a.train()
    parity.compare(model_a, model_b, images(1))
    assert model_a.training
    assert not model_b.training
    assert model_a._tome.observers == ()


def test_unpatched_models_are_refused(models: tuple[Any, Any]) -> None:
    with pytest.raises(NotPatchedError, match=r"`model_b` \(VisionTransformer\) is not patched"):
        parity.compare(models[0], pair(depth=4)[1], images(1))


def test_different_schedules_are_refused(models: tuple[Any, Any]) -> None:
    models[1].r = 5
    with pytest.raises(ArgumentValueError, match="the models merge differently"):
        parity.compare(*models, images(1))
