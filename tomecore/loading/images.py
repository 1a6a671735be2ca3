"""Read images, and resize, crop and scale them for models. Needs Pillow (``tomecore[cli]``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomecore.errors import ArgumentValueError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Preprocess",
    "channels_of",
    "in_colour",
    "named_size",
    "read_image",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class Preprocess:
    """Turn an image into a model's input: the evaluation transform of ImageNet models.

    The shorter side is resized to ``size / crop`` and the middle is cut out; then pixels in [0, 1] are
    scaled to (pixel - mean) / std.

    Args:
        size: (height, width) of the result, in pixels.
        mean: mean of each channel; one number for grey images, three for colour.
        std: standard deviation of each channel, as ``mean``.
        crop: share of the resized image that is kept, from its middle.
        interpolation: name of a Pillow filter, in lower case.
    """

    size: tuple[int, int] = (224, 224)
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    crop: float = 0.875
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise ArgumentValueError(
                "`mean` and `std` must have one number for each channel, 1 or 3 of them; "
                f"got {self.mean!r} and {self.std!r}"
            )
        if not 0 < self.crop <= 1:
            raise ArgumentValueError(f"`crop` must be above 0 and at most 1; got {self.crop!r}")
        if self.interpolation not in _FILTERS:
            raise ArgumentValueError(
                f"`interpolation` must be one of {', '.join(_FILTERS)}; got {self.interpolation!r}"
            )

    @property
    def channels(self) -> int:
        """Number of channels: 1 for grey, 3 for colour."""
        return len(self.mean)

    def __call__(self, picture: Image) -> np.ndarray:
        """Return the model's input, (channels, height, width) float32."""
        pixels = np.asarray(self.cut(picture), dtype=np.float32) / 255.0
        pixels = pixels.reshape(*self.size, self.channels)
        mean = np.asarray(self.mean, dtype=np.float32)
        std = np.asarray(self.std, dtype=np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))

    def cut(self, picture: Image) -> Image:
        """Return the part of ``picture`` that the model sees, in ``size``."""
        from PIL.Image import Resampling

        height, width = self.size
        picture = picture.convert("L" if self.channels == 1 else "RGB")
        # Each side is rounded down by itself, as in timm and torchvision.
        if height / picture.height >= width / picture.width:
            high = math.floor(height / self.crop)
            wide = max(width, int(high * picture.width / picture.height))
        else:
            wide = math.floor(width / self.crop)
            high = max(height, int(wide * picture.height / picture.width))
        picture = picture.resize((wide, high), getattr(Resampling, self.interpolation.upper()))
        left, top = round((wide - width) / 2), round((high - height) / 2)
        return picture.crop((left, top, left + width, top + height))

    def pixels(self, array: np.ndarray) -> np.ndarray:
        """Turn a model's input, (channels, H, W), back into (H, W, 3) uint8, for drawing."""
        shape = (-1, 1, 1)
        scaled = array * np.reshape(self.std, shape) + np.reshape(self.mean, shape)
        found = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        return np.repeat(found, 3, axis=2) if self.channels == 1 else found


def _check_depth(image: Image, name: str) -> None:
    """Raise if an image has pixels of more than 8 bits, which Pillow would clip to white.

    Raises:
        ArgumentValueError: it has; the message begins with ``name``.
    """
    if image.mode.startswith(("I", "F")):
        raise ArgumentValueError(
            f"{name} has pixels of more than 8 bits ({image.mode}), whose range is not known; save it "
            "with 8 bits for each channel"
        )


def in_colour(picture: Image, name: str) -> Image:
    """Return an image of Pillow upright, as its EXIF data say, and in RGB.

    Raises:
        ArgumentValueError: it has no pixels, or more than 8 bits, is closed, or cannot be decoded; the
            message begins with ``name``.
    """
    from PIL import ImageOps

    try:
        upright: Any = ImageOps.exif_transpose(picture)
        if 0 in upright.size:
            raise ArgumentValueError(f"{name} has no pixels; its size is {upright.size}")
        _check_depth(upright, name)
        if "transparency" in upright.info:  # of a palette, which Pillow would warn of
            upright = upright.convert("RGBA")
        image: Image = upright.convert("RGB")
        return image
    except ArgumentValueError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors on broken files
        raise _unreadable(name, error) from error


def read_image(path: Path | str) -> Image:
    """Read one image, upright and in colour.

    Raises:
        ArgumentValueError: there is no such file, or Pillow cannot read it as an image.
    """
    from PIL import Image

    path = Path(path)
    if path.is_dir():
        raise ArgumentValueError(f"{path} is a folder; give the path of an image in it")
    if not path.exists():
        raise ArgumentValueError(f"there is no file {path}")
    try:
        with Image.open(path) as picture:
            return in_colour(picture, str(path))
    except ArgumentValueError:
        raise
    except Exception as error:
        raise _unreadable(str(path), error) from error


def _unreadable(name: str, error: Exception) -> ArgumentValueError:
    return ArgumentValueError(
        f"{name} cannot be read as an image ({type(error).__name__}: {error}); give a PNG, JPEG, WebP or "
        "another format that Pillow reads"
    )


def named_size(modules: list[Any]) -> tuple[int, int] | None:
    """Return the (height, width) that a model names in any of its libraries' ways."""
    for module in modules:
        config = getattr(module, "config", None)
        for owner, name in (
            (getattr(module, "patch_embed", None), "img_size"),
            (module, "img_size"),
            (module, "image_size"),
            (module, "input_resolution"),
            (config, "image_size"),
            (getattr(config, "vision_config", None), "image_size"),
        ):
            value = getattr(owner, name, None)
            sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
            if len(sides) == 2 and all(isinstance(side, int) for side in sides):
                return sides
    return None


def channels_of(modules: list[Any]) -> int | None:
    """Return the channels of a model's images, those of its first convolution; None if it has none."""
    for module in modules:
        if {"Conv2d", "Conv2D"} & {kind.__name__ for kind in type(module).__mro__}:
            own = getattr(module, "in_channels", None)  # Paddle's has an underscore
            return int(module._in_channels if own is None else own)
    return None
