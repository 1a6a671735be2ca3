"""The models that production tests patch: one small model per library, as its users build it.

Nothing of tests/adapters is imported here: processes that tests start import only this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import tomecore.adapters.torch as tome
from tomecore.adapters.engine.spec import attribute

__all__ = [
    "DEPTH",
    "KINDS",
    "Kind",
    "Logits",
    "close",
    "gradients",
    "images",
    "kind_named",
    "seeded",
]

DEPTH = 3


@dataclass(frozen=True)
class Kind:
    """A library's model.

    Args:
        name: the id of its tests.
        build: ``(depth, image size) -> model`` from images to one tensor.
        layers: dotted path of its blocks.
        prefix: the number of prefix tokens, which never merge.
    """

    name: str
    build: Callable[[int, int], nn.Module]
    layers: str
    prefix: int = 1

    def model(self, *, depth: int = DEPTH, size: int = 32, seed: int = 0) -> nn.Module:
        """Float64, every parameter random, in evaluation mode."""
        return seeded(self.build(depth, size), seed)

    def patched(self, *, depth: int = DEPTH, size: int = 32, seed: int = 0, **settings: Any) -> Any:
        return tome.apply_patch(self.model(depth=depth, size=size, seed=seed), **settings)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(attribute(model, self.layers))

    def num_tokens(self, size: int = 32) -> int:
        return self.prefix + (size // 4) ** 2


class Logits(nn.Module):
    """A wrapper that returns one tensor from a model of transformers, as in most scripts."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(images), self.name)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every part of a block matters: no zero bias, no neutral norm or LayerScale."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            vector = parameter.ndim == 1
            middle = 1.0 if vector and not name.endswith("bias") else 0.0
            parameter.copy_(middle + (0.3 if vector else 0.2) * noise)
    return model


def images(batch: int = 3, *, size: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(got: Any, expected: Any, limit: float = 1e-12) -> None:
    """Equal up to ``limit`` of the largest number there."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            close(got[name], value, limit)
        return
    assert got.shape == expected.shape
    allowed = limit * max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=allowed)


def timm_vit(depth: int, size: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": size, "patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 4}
    return VisionTransformer(**sizes, num_classes=7, init_values=0.1, reg_tokens=1)


def timm_eva(depth: int, size: int) -> nn.Module:
    from timm.models.eva import Eva

    sizes = {"img_size": size, "patch_size": 4, "embed_dim": 32, "depth": depth, "num_heads": 4}
    return Eva(**sizes, num_classes=7, use_rot_pos_emb=True, init_values=0.1)


def torchvision_vit(depth: int, size: int) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    sizes = {"image_size": size, "patch_size": 4, "num_layers": depth, "num_heads": 4}
    return VisionTransformer(**sizes, hidden_dim=32, mlp_dim=64, num_classes=7)


def open_clip_vit(depth: int, size: int) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    sizes = {"image_size": size, "patch_size": 4, "layers": depth, "heads": 4, "width": 32}
    return VisionTransformer(**sizes, mlp_ratio=2.0, output_dim=16)


def dinov2(depth: int, size: int) -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    sizes = {"image_size": size, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": depth}
    config = Dinov2Config(**sizes, num_attention_heads=4, num_labels=7, mlp_ratio=2)
    return Logits(Dinov2ForImageClassification(config), "logits")


def clip_vision(depth: int, size: int) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"image_size": size, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": depth}
    config = CLIPVisionConfig(**sizes, num_attention_heads=4, intermediate_size=64)
    return Logits(CLIPVisionModel(config), "pooler_output")


KINDS = [
    Kind("timm-vit", timm_vit, "blocks", prefix=2),
    Kind("timm-eva", timm_eva, "blocks"),
    Kind("torchvision", torchvision_vit, "encoder.layers"),
    Kind("open_clip", open_clip_vit, "transformer.resblocks"),
    Kind("transformers-dinov2", dinov2, "model.dinov2.encoder.layer"),
    Kind("transformers-clip", clip_vision, "model.encoder.layers"),
]


def kind_named(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)
