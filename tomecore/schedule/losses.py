"""Losses of merging on unlabelled images: 1 - cosine of what is read, image by image, in two halves.

A search chooses with the first half and judges with the second one, which it holds back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NoForwardError
from tomecore.frameworks import evaluating, stacked, to_numpy, to_tensor
from tomecore.schedule.rules import handle_of
from tomecore.schedule.saved import matching_of, write_json

__all__ = ["CHOOSING", "HELD_BACK", "Losses", "Read", "batches_of", "first_array"]

#: a function that reads from the model: (model, images) -> array with the batch first
Read = Callable[[Any, Any], Any]
#: names of the halves
CHOOSING, HELD_BACK = "choosing", "held back"
#: images in each half at least, for a standard error
LEAST = 2
#: images per forward pass at most, unless the caller sets it
MOST = 16
SCHEMA = "tomecore search 1"
#: how far norms of the same output may be apart on two machines
APART = 1e-3


def batches_of(images: Any, batch: int | None) -> tuple[list[Any], int]:
    """Return images one by one, as NumPy arrays (C, H, W), and how many go through one forward pass.

    Raises:
        ArgumentTypeError, ArgumentValueError: as in :func:`tomecore.schedule.search`.
    """
    whole = hasattr(images, "shape")
    if not whole and (isinstance(images, str | bytes) or not isinstance(images, Iterable)):
        raise ArgumentTypeError(
            f"`images` must be an array (B, C, H, W) or a list of them; got {type(images).__name__}"
        )
    found: list[Any] = []
    size = 0
    for number, part in enumerate([images] if whole else images):
        name = "images" if whole else f"images[{number}]"
        if isinstance(part, tuple | list | Mapping):
            raise ArgumentTypeError(
                f"`{name}` is a {type(part).__name__}, as of images with labels: a search uses no labels. "
                "Pass an array (B, C, H, W), or a list of them, with the images only"
            )
        if not hasattr(part, "shape"):
            raise ArgumentTypeError(
                f"`{name}` must be an array (B, C, H, W); got {type(part).__name__}"
            )
        if len(part.shape) != 4:
            labels = "; if these are labels, leave them out: a search uses none"
            raise ArgumentValueError(
                f"`{name}` must have shape (B, C, H, W); got {tuple(part.shape)}"
                f"{labels if len(part.shape) < 3 else ''}"
            )
        array = to_numpy(part)
        if array.dtype.kind != "f":
            raise ArgumentTypeError(
                f"`{name}` must be floating point, as the model takes images; got {array.dtype}"
            )
        if found and array.shape[1:] != found[0].shape:
            raise ArgumentValueError(
                f"`{name}` has images of shape {array.shape[1:]}, and the first ones have {found[0].shape}: "
                "a schedule is for one number of tokens. Resize the images"
            )
        size = size or len(array)
        found.extend(array)
    if not found:
        raise ArgumentValueError("`images` holds no image; pass 32 to 64 of them, without labels")
    if len(found) < 2 * LEAST:
        raise ArgumentValueError(
            f"`images` holds {len(found)}, too few to hold half of them back: at least {2 * LEAST} are "
            "needed, and 32 to 64 are advised"
        )
    if all((one == found[0]).all() for one in found[1:]):
        raise ArgumentValueError(
            f"`images` holds the same image {len(found)} times, which says nothing about other images; pass "
            "32 to 64 different ones"
        )
    if batch is None:
        return found, min(size, MOST)
    return found, whole_number(batch, "batch", at_least=1)


def first_array(output: Any) -> Any:
    """Return the output of a model, or the first array in it."""
    while not hasattr(output, "shape"):
        parts = output.values() if isinstance(output, Mapping) else output
        try:
            output = next(iter(parts))
        except (TypeError, StopIteration):
            raise ArgumentTypeError(
                f"the model returns {type(output).__name__}, which holds no array; pass `read`, a function "
                "(model, images) -> array"
            ) from None
    return output


def default_read(model: Any, images: Any) -> Any:
    """Return the first array of the model's output."""
    return first_array(model(images))


class Losses:
    """Losses of schedules on the images of a search, each measured once.

    Args:
        model: a patched model.
        images: arrays (C, H, W); every other one is held back.
        read: what is read from the model.
        batch: images per forward pass.
        resume: a file for what was measured; what is in it is not measured again.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``read`` is not callable or returns no array, another batch, or
            NaN; or the file belongs to another search.
    """

    def __init__(
        self, model: Any, images: list[Any], read: Read | None, batch: int, resume: Path | None
    ) -> None:
        if read is not None and not callable(read):
            raise ArgumentTypeError(
                f"`read` must be a function (model, images) -> array, or None; got {type(read).__name__}"
            )
        self.model, self.handle, self.batch, self.resume = model, handle_of(model), batch, resume
        self.read = read or default_read
        self._images = {CHOOSING: images[::2], HELD_BACK: images[1::2]}
        self.num_tokens = self._width = 0
        self._expected = {half: self._vectors(half, 0) for half in self._images}
        self._known: dict[str, list[float]] = {}
        self.times: dict[str, Any] = {}
        self._identity = self._describe(images)
        if resume is not None and resume.exists():
            self._continue(resume)

    def __call__(self, r: list[int], half: str) -> list[float]:
        """Return 1 - cosine for each image of a half: what is read with ``r``, and without merging."""
        key = json.dumps([half, r])
        if key not in self._known:
            pairs = zip(self._vectors(half, r), self._expected[half], strict=True)
            self._known[key] = [max(0.0, 1 - float((one * other).sum())) for one, other in pairs]
            self.save()
        return self._known[key]

    def inputs(self) -> Any:
        """Return the first images, as many as go through one forward pass, as the model takes them."""
        images = [*self._images[CHOOSING], *self._images[HELD_BACK]]
        return to_tensor(self.model, stacked([images[i % len(images)] for i in range(self.batch)]))

    def save(self) -> None:
        """Write what was measured to the file, if there is one."""
        if self.resume is not None:
            content = {"schema": SCHEMA, **self._identity, "losses": self._known}
            write_json(self.resume, {**content, "times": self.times})

    def _vectors(self, half: str, r: Any) -> list[Any]:
        """Return what is read of each image, flat and of length 1; zeros stay zeros."""
        found: list[Any] = []
        images = self._images[half]
        self.model.r = r
        with evaluating(self.model):
            for at in range(0, len(images), self.batch):
                part = images[at : at + self.batch]
                array = self._read(to_tensor(self.model, stacked(part)), len(part), r)
                found.extend(array)
        if r == 0:
            try:
                tokens = self.handle.num_tokens
            except NoForwardError:
                raise ArgumentValueError(
                    "`read` did not run the model that it is given, so what it returns is the same with and "
                    "without merging. Call that model in it"
                ) from None
            self.num_tokens = self.num_tokens or tokens
        norms = [math.sqrt(float((one * one).sum())) for one in found]
        if r == 0 and not all(norms):
            raise ArgumentValueError(
                f"`read` returned only zeros for image {norms.index(0.0)} of the half {half}, without "
                "merging: zeros have no cosine. Read something that says what the image is"
            )
        return [one / (norm or 1.0) for one, norm in zip(found, norms, strict=True)]

    def _read(self, images: Any, count: int, r: Any) -> Any:
        """Return what is read of a batch, (B, D) in float64; raise if it cannot be compared."""
        output = self.read(self.model, images)
        name = "`read`" if self.read is not default_read else "the model"
        if not hasattr(output, "shape") or not hasattr(output, "dtype"):
            raise ArgumentTypeError(
                f"{name} must return an array with the batch first; it returned {type(output).__name__}"
            )
        array = to_numpy(output)
        if array.ndim < 1 or len(array) != count or array.size == 0:
            raise ArgumentValueError(
                f"{name} must return an array with the batch first, {count} images here; it returned shape "
                f"{array.shape}"
            )
        if array.dtype.kind not in "fiu":
            raise ArgumentTypeError(f"{name} must return numbers; it returned {array.dtype}")
        flat = array.reshape(count, -1).astype("float64")
        if not math.isfinite(float(abs(flat).sum())):
            how = "without merging" if r == 0 else f"with r = {r}"
            raise ArgumentValueError(
                f"{name} returned NaN or infinity {how}: check the weights, and that the images are prepared "
                "as the model needs them"
            )
        self._width = self._width or flat.shape[1]
        if flat.shape[1] != self._width:
            raise ArgumentValueError(
                f"{name} must return as many numbers for an image with merging as without; it returned "
                f"{flat.shape[1]} and {self._width}. Use apply_patch(model, restore=True), or "
                "read fewer tokens"
            )
        return flat

    def _describe(self, images: list[Any]) -> dict[str, Any]:
        """Return what a file must agree with to belong to the same search."""
        digest = hashlib.sha256()
        for one in images:
            digest.update(one.astype("float32").tobytes())
        probe = self._expected[CHOOSING][0]
        return {
            "images": digest.hexdigest()[:16],
            "count": len(images),
            "layers": len(self.handle.blocks),
            "num_tokens": self.num_tokens,
            "matching": matching_of(self.handle),
            "prop_attn": self.handle.prop_attn,
            "read": [len(probe), *map(float, probe[:: max(1, len(probe) // 8)][:8])],
        }

    def _continue(self, path: Path) -> None:
        """Take over what is in the file; raise if it belongs to another search."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            same = content["schema"] == SCHEMA
            for name, value in self._identity.items():
                if name == "read":
                    close = all(
                        abs(one - other) <= APART
                        for one, other in zip(content[name], value, strict=True)
                    )
                    same = same and close
                else:
                    same = same and content[name] == value
            known, times = content["losses"], content["times"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentValueError(
                f"`resume` {os.fspath(path)!r} cannot be resumed ({error}); pass another file, or delete it"
            ) from error
        if not same:
            raise ArgumentValueError(
                f"`resume` {os.fspath(path)!r} belongs to other images, another model or another `read`; "
                "pass another file, or delete it"
            )
        self._known, self.times = known, times
