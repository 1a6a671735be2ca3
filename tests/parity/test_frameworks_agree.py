"""Law 7: the same weights in torch and Paddle give the same decisions, sizes, sources and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
import torch
from pairs import images, patched_pair

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import matching, parity
from tomecore.frameworks import predict, to_numpy

VARIANTS = {
    "class token": {},
    "distilled": {"distilled": True},
    "average pool": {"class_token": False, "global_pool": "avg"},
}
SCHEDULES = [8, 16, (12, -1.0), [5, 0, 30, 3]]


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return patched_pair(**request.param)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("r", SCHEDULES, ids=str)
def test_float64_agrees_in_every_decision(models: tuple[Any, Any], r: Any) -> None:
    model_a, model_b = models
    model_a.r = model_b.r = r
    report = parity.compare(model_a, model_b, images(4))
    assert report.layers
    assert report.identical_decisions == 1
    assert report.identical_predictions == 1
    assert report.largest_difference < 1e-11
    assert all(layer.identical_sizes == 1 for layer in report.layers)
    assert model_a.tome.tokens == model_b.tome.tokens
    for name in ("sizes", "source"):
        a, b = (to_numpy(getattr(model.tome, name)) for model in models)
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("r", SCHEDULES, ids=str)
def test_float32_disagrees_only_at_near_ties(r: Any) -> None:
    model_a, model_b = patched_pair("float32")
    model_a.r = model_b.r = r
    report = parity.compare(model_a, model_b, images(32))
    assert report.largest_difference_agreeing < 1e-5
    assert report.largest_gap < 1e-5
    assert report.identical_decisions > 0.9


def test_gradients_agree() -> None:
    model_a, model_b = patched_pair(depth=4)
    model_a.r = model_b.r = 12
    x = images(2)
    (model_a(torch.from_numpy(x)) ** 2).sum().backward()
    (model_b(paddle.to_tensor(x)) ** 2).sum().backward()
    gradients_b = {n: to_numpy(p.grad) for n, p in model_b.named_parameters()}
    gradients_a = parity.convert_weights(
        {n: p.grad for n, p in model_a.named_parameters()}, source="timm", target="plsc"
    )
    assert gradients_a.keys() == gradients_b.keys()
    for name, gradient in gradients_a.items():
        assert np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(gradients_b[name], gradient, rtol=1e-9, atol=1e-9, err_msg=name)


def test_unpatched_twins_agree() -> None:
    """Otherwise nothing above says anything about merging."""
    from pairs import pair

    outputs = [predict(model, images(3)) for model in pair()]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-12


@pytest.mark.parametrize("name", matching.names())
def test_every_matching_decides_alike(name: str) -> None:
    """Each more matching adds one."""
    model_a, model_b = patched_pair()
    for model, adapter in ((model_a, tomecore.adapters.torch), (model_b, tomecore.adapters.paddle)):
        adapter.apply_patch(model, r=[5, 0, 30, 3], matching=name, trace_source=True)
    report = parity.compare(model_a, model_b, images(4))
    assert report.identical_decisions == 1
    assert report.largest_difference < 1e-11
    for read in ("sizes", "source"):
        a, b = (to_numpy(getattr(model.tome, read)) for model in (model_a, model_b))
        np.testing.assert_allclose(a, b, rtol=1e-6)
