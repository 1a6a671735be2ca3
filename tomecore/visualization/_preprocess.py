"""Find the size and the normalisation of a model's input from the model itself."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentValueError
from tomecore.frameworks import named_modules
from tomecore.loading.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess, channels_of, named_size

__all__ = ["preprocess_of"]

Statistics = Sequence[float] | float

#: the statistics of OpenAI's CLIP, which its package keeps out of the model
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: types of transformers whose checkpoints have ImageNet's statistics, unlike the class of their processor
_BY_IMAGENET = ("deit", "dinov2", "dinov2_with_registers", "vit_mae", "vit_msn")


def preprocess_of(
    model: Any,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
) -> Preprocess:
    """Return how images become a model's input, by what its library keeps in the model.

    That is ``pretrained_cfg`` (timm), ``image_mean`` and ``image_std`` (open_clip), or an image
    processor (transformers: the checkpoint's, if it is on this machine, else the defaults of its type).
    Other models, torchvision's and Paddle's among them, get ImageNet's mean and standard deviation.

    Args:
        model: a model of PyTorch or Paddle.
        size: height and width in pixels, or one number for both; None: those of the model, else 224.
        mean: of each channel, of pixels from 0 to 1, or one number for all; None: the model's.
        std: in the same way.

    Raises:
        ArgumentValueError: the channels are not 1 or 3, or ``mean`` or ``std`` has another number of them.
    """
    modules = [module for _, module in named_modules(model)]
    channels = channels_of(modules) or 3
    if channels not in (1, 3):
        raise ArgumentValueError(
            f"{type(model).__name__} takes images of {channels} channels, and only those of 1 or 3 can be "
            "drawn; draw on an image of your own with tomecore.visualization.make_visualization and "
            "sources_by_layer"
        )
    found = (
        _of_open_clip(modules)
        or _of_timm(modules)
        or _of_transformers(modules)
        or _of_clip(modules)
    )
    return Preprocess(
        size=_pair(size)
        if size is not None
        else named_size(modules) or found.get("size") or (224, 224),
        mean=_for_channels(mean, found.get("mean", IMAGENET_MEAN), channels, "mean"),
        std=_for_channels(std, found.get("std", IMAGENET_STD), channels, "std"),
        crop=found.get("crop", 1.0),
        interpolation=found.get("interpolation", "bicubic"),
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise ArgumentValueError(f"`size` must be (height, width) or one number; got {size!r}")
    height, width = (whole_number(side, "size", 1, unit="pixels") for side in sides)
    return height, width


def _for_channels(
    given: Statistics | None, default: Sequence[float], channels: int, name: str
) -> tuple[float, ...]:
    """Return one number for each channel: those given, or the default; grey images get its mean."""
    if given is None:
        grey = (sum(default) / len(default),) * channels
        return tuple(default) if len(default) == channels else grey
    values = (given,) * channels if isinstance(given, int | float) else tuple(given)
    if len(values) != channels:
        raise ArgumentValueError(
            f"`{name}` must have {channels} numbers, one for each channel of the model's images; "
            f"got {given!r}"
        )
    if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
        allowed = "positive numbers" if name == "std" else "finite numbers"
        raise ArgumentValueError(f"`{name}` must be {allowed}; got {given!r}")
    return values


def _of_open_clip(modules: list[Any]) -> dict[str, Any]:
    for module in modules:
        mean, std = getattr(module, "image_mean", None), getattr(module, "image_std", None)
        if isinstance(mean, tuple | list) and isinstance(std, tuple | list):
            return {"mean": tuple(mean), "std": tuple(std)}
    return {}


def _of_timm(modules: list[Any]) -> dict[str, Any]:
    for module in modules:
        config = getattr(module, "pretrained_cfg", None)
        if isinstance(config, dict) and config.get("mean") and config.get("std"):
            found = {"mean": tuple(config["mean"]), "std": tuple(config["std"])}
            if config.get("interpolation") not in (None, "random"):
                found["interpolation"] = config["interpolation"]
            if config.get("input_size"):
                found["size"] = tuple(config["input_size"][1:])
            return {**found, "crop": config.get("crop_pct") or 1.0}
    return {}


def _of_transformers(modules: list[Any]) -> dict[str, Any]:
    for module in modules:
        config = getattr(module, "config", None)
        kind = getattr(config, "model_type", None)
        if not isinstance(kind, str) or type(module).__module__.partition(".")[0] != "transformers":
            continue
        for processor in _processors(kind, getattr(config, "_name_or_path", None)):
            mean = getattr(processor, "image_mean", None)
            std = getattr(processor, "image_std", None)
            if mean and std:
                return {"mean": tuple(mean), "std": tuple(std)}
    return {}


def _processors(kind: str, name: str | None) -> Iterator[Any]:
    """Yield image processors for a model type: the checkpoint's if it is on this machine, then classes."""
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    if name:
        # Without a file of it here, or without a package that it needs, the class has to do.
        with contextlib.suppress(ImportError, OSError, ValueError):
            yield auto.AutoImageProcessor.from_pretrained(name, local_files_only=True)
    if kind in _BY_IMAGENET:
        return
    for one in (kind, kind.removesuffix("_vision_model")):
        forms = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(one, {})
        for form in ("pil", "torchvision"):
            with contextlib.suppress(
                ImportError
            ):  # a stand-in for a class whose package is missing
                processor = auto.get_image_processor_class_from_name(forms.get(form) or "")
                if processor is not None and hasattr(processor, "image_mean"):
                    yield processor


def _of_clip(modules: list[Any]) -> dict[str, Any]:
    if any(type(module).__module__ == "clip.model" for module in modules):
        return {"mean": _CLIP[0], "std": _CLIP[1]}
    return {}
