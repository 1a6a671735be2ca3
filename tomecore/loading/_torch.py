"""Load models of timm, torchvision, transformers and open_clip, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.loading._loaded import Loaded, library, near, unknown_model
from tomecore.loading.images import Preprocess

__all__ = [
    "load_weights",
    "open_clip_model",
    "timm_model",
    "torchvision_model",
    "transformers_model",
    "uninitialised",
]

#: methods that fill a tensor, of which random initialisations consist
_FILLING = ("normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
#: characters of a list of weights that a message shows
_SHOWN = 400
#: tensors with more elements are weights of a product, or embeddings
_SMALL = 2**16
#: an attribute of tensors that share the memory of a parameter
_OF_PARAMETER = "_tomecore_of_parameter"


def timm_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    timm = library("timm", "timm")
    architecture, _, tag = name.partition(".")
    where = f"timm {timm.__version__}"
    if architecture not in timm.list_models():
        raise unknown_model(where, name, timm.list_models(), timm.list_models("*vit*"))
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise unknown_model(where, name, timm.list_pretrained(f"{architecture}.*"))
    asked = {} if resolution is None else {"img_size": resolution}
    model = timm.create_model(name, pretrained=pretrained, **asked)
    config = timm.data.resolve_data_config(asked, model=model)
    preprocess = Preprocess(
        size=tuple(config["input_size"][1:]),
        mean=config["mean"],
        std=config["std"],
        crop=config["crop_pct"],
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bicubic",
    )
    transform = timm.data.create_transform(**config, is_training=False)
    return Loaded(name, model, preprocess, _ToNumpy(transform))


def torchvision_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    models = library("torchvision", "torchvision").models
    if name not in models.list_models():
        vits = [one for one in models.list_models() if "vit" in one]
        raise unknown_model("torchvision", name, models.list_models(), vits)
    size = {} if resolution is None else {"image_size": resolution}
    model = models.get_model(name, weights="DEFAULT" if pretrained else None, **size)
    side = int(getattr(model, "image_size", resolution or 224))
    transform = None
    if pretrained:
        transform = _ToNumpy(models.get_model_weights(name).DEFAULT.transforms())
    return Loaded(name, model, Preprocess((side, side), interpolation="bilinear"), transform)


def transformers_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    transformers = library("transformers", "transformers torch")
    preprocess: dict[str, Any] = {}
    transform = None
    if pretrained or Path(name).is_dir():
        config = transformers.AutoConfig.from_pretrained(name)
        make, argument = "from_pretrained", name
        processor = transformers.AutoImageProcessor.from_pretrained(name, use_fast=False)
        preprocess = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
        transform = _ByProcessor(processor)
    else:
        try:
            config = transformers.AutoConfig.for_model(name)
        except ValueError as error:
            similar = near(name, list(transformers.CONFIG_MAPPING.keys()))
            hint = f"; did you mean {', '.join(similar)}?" if similar else ""
            raise ArgumentValueError(
                f"{name!r} is neither a folder nor a model type of transformers "
                f"{transformers.__version__} (vit, dinov2, clip_vision_model, siglip_vision_model "
                f"...){hint} For a name on the hub, use its weights (--pretrained)"
            ) from error
        make, argument = "from_config", config
    if resolution is not None:
        _set_image_size(config, resolution)
    classifies = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if hasattr(config, "vision_config"):  # of a CLIP without such a head, it would be random
        architectures = getattr(config, "architectures", None) or []
        classifies = classifies and any("Classification" in name for name in architectures)
    if getattr(config, "architectures", None) is None:
        config.architectures = []  # transformers reads a list where a type has several classes
    kind = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    model = getattr(kind, make)(argument, **({"config": config} if make != "from_config" else {}))
    whole = model if hasattr(model, "get_image_features") else None
    model = getattr(model, "vision_model", model)
    side = getattr(model.config, "image_size", None) or resolution or 224
    side = side if isinstance(side, int) else side[0]
    return Loaded(name, model, Preprocess((side, side), crop=1.0, **preprocess), transform, whole)


def _set_image_size(config: Any, resolution: int) -> None:
    """Set the pixels on a side of the input; of a CLIP, in the configuration of its vision tower."""
    config = getattr(config, "vision_config", None) or config
    if not hasattr(config, "image_size"):
        raise ArgumentValueError(
            f"the configuration {type(config).__name__} has no image_size; leave --resolution out"
        )
    config.image_size = resolution


def open_clip_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    open_clip = library("open_clip", "open_clip_torch")
    name, _, tag = name.partition("/")
    if name not in open_clip.list_models():
        raise unknown_model("open_clip", name, open_clip.list_models())
    if pretrained and not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ArgumentValueError(
            f"open_clip has several weights for {name}; name one of {', '.join(tags)} after a "
            f"slash, as in open_clip:{name}/{tags[0] if tags else 'TAG'}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and tag not in tags and not Path(tag).is_file():
        raise unknown_model(f"open_clip, for {name},", tag, tags)
    model = open_clip.create_model(
        name, pretrained=tag if pretrained else None, force_image_size=resolution
    ).visual
    size = model.image_size if isinstance(model.image_size, tuple) else (model.image_size,) * 2
    preprocess = Preprocess(size, model.image_mean, model.image_std, crop=1.0)
    transform = open_clip.image_transform(
        size, is_train=False, mean=model.image_mean, std=model.image_std
    )
    return Loaded(name, model, preprocess, _ToNumpy(transform))


@contextlib.contextmanager
def uninitialised() -> Iterator[None]:
    """Within this context, large parameters are not filled; most of their memory is then never written.

    Small ones are, so that settings that are read from values (scales, gates) are right. Other tensors than
    parameters are filled too: torch draws numbers until all are within bounds, which would never end.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    filling = {getattr(torch.Tensor, name) for name in _FILLING}
    # of a property, which the stub calls a tensor
    aliases = (torch.Tensor.data.__get__, torch.Tensor.detach)  # type: ignore[attr-defined]

    def of_parameter(found: Any) -> bool:
        return isinstance(found, torch.nn.Parameter) or hasattr(found, _OF_PARAMETER)

    class Uninitialised(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = kwargs or {}
            if func in filling or getattr(func, "__module__", "") == "torch.nn.init":
                filled = args[0] if args else named.get("tensor")
                if filled is not None and of_parameter(filled) and filled.numel() > _SMALL:
                    return filled
            found = func(*args, **named)
            if func in aliases and of_parameter(args[0]):
                setattr(found, _OF_PARAMETER, True)
            return found

    with Uninitialised():
        yield


def load_weights(model: Any, path: Path) -> None:
    """Load a file of weights, safetensors or a torch checkpoint, strictly."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = " ".join(str(error).split())
        shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]} ..."
        raise ArgumentValueError(f"the weights in {path} do not fit the model. {shown}") from error


class _ToNumpy:
    """A torch transform that returns NumPy arrays."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, picture: Any) -> np.ndarray:
        return np.asarray(self.transform(picture.convert("RGB")).numpy(), dtype=np.float32)


class _ByProcessor:
    """A transform that applies an image processor of transformers to one image."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, picture: Any) -> np.ndarray:
        found = self.processor(images=picture.convert("RGB"), return_tensors="np")
        return np.asarray(found["pixel_values"][0], dtype=np.float32)
