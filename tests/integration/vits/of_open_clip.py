"""open_clip's vision towers, built small with random weights: one line per kind of model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from adapters.cases import Case
from adapters.frameworks import TORCH
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

__all__ = ["MORE", "TEXT", "VISION", "open_clip_tower", "openai_model"]

VISION = {"patch_size": 4, "width": 32, "head_width": 8, "mlp_ratio": 2.0}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}


class ZeroShot(nn.Module):
    """A whole CLIP model that returns which of seven fixed texts matches an image."""

    def __init__(self, img_size: int, depth: int) -> None:
        super().__init__()
        vision = {**VISION, "image_size": img_size, "layers": depth}
        self.clip = CLIP(16, vision, TEXT)
        self.texts = torch.randint(1, 50, (7, 8), generator=torch.Generator().manual_seed(0))

    def forward(self, images: Any) -> Any:
        return self.clip.get_logits(images, self.texts)[0]


def open_clip_tower(**fixed: Any) -> Callable[..., Any]:
    def build(img_size: int, depth: int) -> Any:
        sizes = {"image_size": img_size, "patch_size": 4, "layers": depth, "heads": 4}
        widths = {"width": 32, "mlp_ratio": 2.0, "output_dim": 16, "attn_pooler_heads": 2}
        return VisionTransformer(**{**sizes, **widths, **fixed})

    return build


def openai_model():
    """``clip.model`` without ``clip/__init__.py``, which needs what newer setuptools do not have."""
    if "clip" not in sys.modules:
        found = importlib.util.find_spec("clip")
        package = types.ModuleType("clip")
        package.__path__ = list(found.submodule_search_locations)
        package.__spec__ = found  # find_spec() reads it
        sys.modules["clip"] = package
    return importlib.import_module("clip.model")


def _case(name: str, pooled: bool = False, exact: bool = False, **fixed: Any) -> Case:
    build, layers = open_clip_tower(**fixed), "transformer.resblocks"
    return Case(f"open_clip-{name}", TORCH, build, pooled=pooled, exact=exact, layers=layers)


MORE = [
    _case("plain"),
    _case("layer-scale", ls_init_value=0.1, act_layer=QuickGELU, no_ln_pre=True),
    _case("average", pooled=True, pool_type="avg", final_ln_after_pool=True),
    _case("all-tokens", pool_type="none"),
    _case("attentional-pool", pooled=True, attentional_pool=True, attn_pooler_queries=5),
    _case("cascade", pooled=True, attentional_pool="cascade", output_dim=32),
    _case("custom", exact=True, block_type="custom"),
    _case("qk-norm", exact=True, qk_norm=True),
    _case(
        "norms-and-scales",
        exact=True,
        ls_init_value=0.1,
        scale_heads=True,
        scale_attn_inner=True,
        scale_attn=True,
        scale_fc=True,
    ),
    Case(
        "open_clip-whole",
        TORCH,
        ZeroShot,
        exact=False,
        layers="clip.visual.transformer.resblocks",
    ),
]
