"""A tower inside a larger model: it is swapped too, so its class is watched as the blocks' are."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import tomecore.adapters.torch as tome
from tomecore.errors import UnsupportedModelError

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_tower_inside_a_model():
    tower = VisionTransformer(num_classes=7, **TINY).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    alone = tome.apply_patch(tower, r=8)(images)
    tome.remove_patch(tower)
    outer = tome.apply_patch(Outer(tower))
    outer.r = 8
    assert torch.equal(outer(images), alone)
    assert outer.tome.tokens == [57, 49, 41, 33]
    assert [y.shape[-2:] for y in tower.forward_intermediates(images)[1]] == 4 * [(8, 8)]
    assert not hasattr(tower, "r")


def test_a_tower_whose_class_was_changed_since():
    tower = VisionTransformer(num_classes=7, **TINY).eval()
    outer = tome.apply_patch(Outer(tower), r=8)
    patched = type(tower)
    tower.__class__ = type("Sharded", (patched,), {})
    with pytest.raises(UnsupportedModelError, match="was changed after apply_patch"):
        tome.remove_patch(outer)
    tower.__class__ = patched
    tome.remove_patch(outer)
    assert type(tower) is VisionTransformer
    assert "_tome" not in vars(tower)
