"""Load models of Paddle's libraries, and those that come with tomecore, by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentValueError, MissingLibraryError
from tomecore.frameworks import FRAMEWORKS, require
from tomecore.loading._loaded import Loaded, unknown_model
from tomecore.loading.images import Preprocess
from tomecore.models import digits

__all__ = ["digits_model", "library_model", "load_weights", "plain_model"]

#: width, depth, heads
_SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def library_model(names: tuple[str, ...], install: str) -> Callable[..., Loaded]:
    def loader(name: str, pretrained: bool, resolution: int | None) -> Loaded:
        require("paddle")
        for module in names:
            if importlib.util.find_spec(module.partition(".")[0]) is not None:
                library = importlib.import_module(module)
                break
        else:
            raise MissingLibraryError(
                f"{names[0]} is not installed; install it with: pip install {install}"
            )
        if not callable(getattr(library, name, None)):
            known = [n for n in dir(library) if "vit" in n.lower() or "deit" in n.lower()]
            raise unknown_model(names[0], name, known)
        size = {} if resolution is None else {"img_size": resolution}
        model = getattr(library, name)(pretrained=pretrained, **size)
        model = model[0] if isinstance(model, tuple) else model
        side = model.patch_embed.img_size
        return Loaded(
            name, model, Preprocess(tuple(side) if not isinstance(side, int) else (side,) * 2)
        )

    return loader


def plain_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    require("paddle")
    if name not in _SIZES:
        raise ArgumentValueError(f"paddle:{name} is not one of paddle:{', paddle:'.join(_SIZES)}")
    if pretrained:
        raise ArgumentValueError(
            "the plain ViTs have no pretrained weights; give a file with --weights"
        )
    from tomecore.models.paddle import VisionTransformer

    side = resolution or 224
    width, depth, heads = _SIZES[name]
    model = VisionTransformer(
        img_size=side,
        patch_size=16,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        qkv_bias=True,
        epsilon=1e-6,  # as in timm's models of these sizes
    )
    return Loaded(name, model, Preprocess((side, side)))


def digits_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    if name not in FRAMEWORKS:
        raise ArgumentValueError(f"digits:{name} is not one of digits:torch, digits:paddle")
    require(name)
    side = digits.DIGITS_VIT["img_size"]
    if resolution not in (None, side):
        raise ArgumentValueError(
            f"the digits model takes images of {side} pixels; got {resolution}"
        )
    preprocess = Preprocess((side, side), (digits.MEAN,), (digits.STD,), 1.0, "bilinear")
    return Loaded(name, digits.build(name), preprocess)


def load_weights(model: Any, path: Path) -> None:
    """Load a file of weights, safetensors or ``.pdparams``, strictly."""
    from tomecore.models import paddle

    paddle.load_weights(model, str(path))
