"""Tracers other than Dynamo: a graph that is right for other batches, or a refusal in words."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torchvision.models.feature_extraction import create_feature_extractor
from vits.cases import case_named

import tomecore.adapters.torch as tome
from production.models import close, images, kind_named
from tomecore.errors import UnsupportedModelError

KINDS = ["timm-plain", "torchvision-plain", "open_clip-plain", "dinov2-plain"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_a_traced_graph_serves_other_batches(name, gradients, batch):
    case = case_named(name)
    model = case.patched(r=8, trace_source=True)
    with torch.set_grad_enabled(gradients):
        traced = torch.jit.trace(model, case.tensors(batch))
        for other in (1, 2, 3):
            x = case.tensors(other, seed=other)
            close(traced(x), model(x))


@pytest.mark.parametrize("name", KINDS)
def test_scripts_are_refused_in_words(name):
    model = case_named(name).patched(r=8)
    for r in (8, 0):
        model.r = r
        with pytest.raises(
            UnsupportedModelError, match=r"torch\.jit\.script cannot compile a patched"
        ):
            torch.jit.script(model)
    with pytest.raises(UnsupportedModelError, match="call remove_patch first"):
        torch.jit.script(torch.nn.Sequential(model))
    assert model.tome.r == 0


@pytest.mark.parametrize("name", ["timm-plain", "torchvision-plain"])
def test_symbolic_traces(name):
    """With r=0 the original is traced; while tokens merge it is refused."""
    case = case_named(name)
    model, x = case.patched(r=0), case.tensors(2)
    close(fx.symbolic_trace(model)(x), model(x), 0)
    model.r = 8
    with pytest.raises(UnsupportedModelError, match=r"torch\.fx cannot trace a block that merges"):
        fx.symbolic_trace(model)
    model(x)
    assert model.tome.tokens == [57, 49, 41, 33]


def test_feature_extractors_of_torchvision():
    case = case_named("torchvision-plain")
    x, node = case.tensors(2), "heads.head"
    model = case.patched(r=0)
    close(create_feature_extractor(model, [node])(x)[node], model(x), 0)
    model.r = 8
    with pytest.raises(UnsupportedModelError, match=r"torch\.fx cannot trace"):
        create_feature_extractor(model, [node])


def test_products_in_a_recomputed_pass_of_a_compiled_model():
    """A compiled model runs none of tomecore's Python, and says that it keeps no results."""
    model, x = kind_named("timm-vit").patched(r=8), images()
    close(torch.compile(model, backend="eager")(x), tome.apply_patch(model, r=8)(x))
