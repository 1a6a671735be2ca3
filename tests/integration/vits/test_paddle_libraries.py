"""Features of Paddle's libraries only: two module paths for one class, graphs, their other models."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.test_gradients import assert_same
from adapters.test_paddle_only import same, static
from paddleclas.ppcls.arch.backbone.legendary_models import swin_transformer
from paddleclas.ppcls.arch.backbone.legendary_models.resnet import ResNet18
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas

from tomecore.adapters import paddle as tome
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.of_paddle import PLAIN as PADDLE_MODELS

PLAIN = case_named("paddleclas-plain")
REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
paddle_case = pytest.mark.parametrize("case", PADDLE_MODELS, ids=lambda case: case.name)


def moved(cls, module):
    """The same class as an import by another path gives it."""
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls.__name__, cls.__bases__, {**own, "__module__": module})


@pytest.mark.parametrize(
    "start", ["ppcls", "paddleclas.ppcls", "vendored.ppcls"], ids="{}...".format
)
def test_both_module_paths(start):
    """PaddleClas is imported as ``ppcls`` from its sources and as ``paddleclas.ppcls`` from PyPI."""
    fw, model, images = PLAIN.fw, PLAIN.model(), PLAIN.images()
    expected = fw.forward(PLAIN.patched(r=8), images)
    classes = {}
    for layer in fw.modules(model).values():
        cls = type(layer)
        if cls.__module__ == clas.__name__:
            path = f"{start}.{cls.__module__.partition('ppcls.')[2]}"
            layer.__class__ = classes.setdefault(cls, moved(cls, path))
    assert {cls.__name__ for cls in classes} >= {"VisionTransformer", "Block", "Attention", "Mlp"}
    before = fw.fingerprint(model)
    tome.apply_patch(model, r=8)
    assert np.array_equal(fw.forward(model, images), expected)
    tome.remove_patch(model)
    assert fw.fingerprint(model) == before


def test_a_path_that_only_looks_alike():
    model = PLAIN.model()
    for block in model.blocks:
        block.__class__ = moved(type(block), f"not{clas.__name__.partition('.')[2]}")
    with pytest.raises(UnsupportedModelError, match="whose forward is not one that tomecore knows"):
        tome.apply_patch(model)


@REENTRANT
@paddle_case
def test_recomputation_of_whole_models(case, reentrant):
    """Every block in a region of its own, as a user writes it: by replacing what the model calls."""
    fw, model, images = case.fw, case.patched(r=8), case.tensors()
    expected = fw.gradients(model, lambda: (model(images) ** 2).sum())
    blocks = list(model.blocks)

    class Recomputed(paddle.nn.Layer):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return fw.checkpoint(self.block, x, reentrant=reentrant)

    model.blocks = paddle.nn.LayerList([Recomputed(block) for block in blocks])
    loss = (model(images) ** 2).sum()
    model.r = 2
    got = fw.gradients_of(model, loss)
    assert_same({name.replace(".block.", "."): got[name] for name in got}, expected)


@pytest.mark.parametrize("full_graph", [True, False], ids=["ast", "sot"])
@pytest.mark.parametrize("name", ["paddleclas-distilled", "ppim-plain"])
def test_a_static_graph_computes_the_same(name, full_graph):
    case = case_named(name)
    model, images = case.patched(depth=2, r=[0, 8]), case.tensors(3)
    expected = case.fw.numpy(model(images))
    same(static(model, full_graph), images, expected)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: swin_transformer.SwinTransformer(
                img_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4
            ),
            r"SwinTransformer.* has a window_size \(.*\): it attends in windows of its grid",
        ),
        (ResNet18, "holds no vision transformer that tomecore knows, so there is nothing to merge"),
    ],
    ids=["swin", "resnet"],
)
def test_other_models_are_refused_and_untouched(build, text):
    model = build()
    before = PLAIN.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(model)
    assert PLAIN.fw.fingerprint(model) == before
