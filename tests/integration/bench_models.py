"""The small models that benchmarks are tested on."""

from __future__ import annotations

import importlib
from typing import Any

from tomecore.loading import Loaded
from tomecore.loading.images import Preprocess

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def small(framework: str) -> Any:
    module = importlib.import_module(f"tomecore.models.{framework}")
    model = module.VisionTransformer(**SMALL)
    model.eval()
    return model


def loaded(framework: str) -> Loaded:
    return Loaded(f"small {framework}", small(framework), Preprocess((32, 32)))
