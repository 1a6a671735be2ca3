"""Write the graph of a torch model to an ONNX file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tomecore.errors import ArgumentValueError, TomeError
from tomecore.exporting._graph import shorten

__all__ = ["Features", "features_of", "without_projection", "write_onnx"]

#: the outputs of models of transformers, the first of which is exported
_FIELDS = ("logits", "image_embeds", "pooler_output", "last_hidden_state")
#: methods of models with two towers that return the features of images
_METHODS = ("get_image_features", "encode_image")
#: bytes of weights from which they get a file of their own: a file of Protobuf has at most 2 GB
_LARGE = 1_900_000_000


class Features(nn.Module):
    """A model whose forward takes images only and returns one tensor.

    Args:
        model: a model of images, or of images and texts.
        field: which of the fields that the model returns; None: the first of logits, image_embeds,
            pooler_output and last_hidden_state.
    """

    def __init__(self, model: nn.Module, field: str | None) -> None:
        super().__init__()
        self.model = model
        self.method = next((name for name in _METHODS if hasattr(model, name)), "forward")
        self.field = field

    def forward(self, images: Any) -> Any:
        # A call of the model itself, so that its hooks run.
        call = self.model if self.method == "forward" else getattr(self.model, self.method)
        return features_of(call(images), self.field)


def features_of(found: Any, field: str | None) -> Any:
    """Return one tensor of what a model returned.

    Raises:
        ArgumentValueError: the model does not return ``field``, or nothing that can be exported.
    """
    if isinstance(found, torch.Tensor) and field is None:
        return found
    if isinstance(found, tuple | list) and found and field is None:
        return features_of(found[0], None)
    fields = {name: getattr(found, name, None) for name in (_FIELDS if field is None else (field,))}
    for tensor in fields.values():
        if isinstance(tensor, torch.Tensor):
            return tensor
    has = (
        [name for name, value in found.items() if value is not None]
        if hasattr(found, "items")
        else []
    )
    raise ArgumentValueError(
        f"`field` {field!r} is not a tensor that the model returns; it returns "
        f"{type(found).__name__}{' with ' + ', '.join(has) if has else ''}"
    )


@contextlib.contextmanager
def without_projection(model: Any) -> Iterator[Any]:
    """Yield the vision tower of a CLIP without its projection; the model is restored afterwards.

    Raises:
        ArgumentValueError: the model has no projection.
    """
    tower = getattr(model, "visual", model)  # open_clip and OpenAI's CLIP
    if hasattr(model, "vision_model") and hasattr(model, "visual_projection"):
        yield model.vision_model
    elif getattr(tower, "proj", None) is not None:
        kept, tower.proj = tower.proj, None
        try:
            yield tower
        finally:
            tower.proj = kept
    elif hasattr(tower, "trunk") and hasattr(tower, "head"):  # open_clip with a trunk of timm
        yield tower.trunk
    else:
        raise ArgumentValueError(
            f"`projection=False`: {type(model).__name__} has no projection; leave `projection` out"
        )


def write_onnx(
    model: Features, images: Any, path: Path, *, names: tuple[str, str], opset: int | None
) -> None:
    """Write the graph to ``path``, for any batch size; large weights go to ``path`` + ".data".

    Raises:
        ArgumentValueError: torch does not write this ``opset``.
        TomeError: torch cannot export the model.
    """
    batch = {0: torch.export.Dim("batch")}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                dynamic_shapes=(batch,),
                input_names=names[:1],
                output_names=names[1:],
                opset_version=opset,
                verbose=False,
            )
            found = program.model.opset_imports[""]  # type: ignore[union-attr]
            if opset is not None and found != opset:
                raise ArgumentValueError(
                    f"`opset`: torch.onnx.export wrote version {found}, not {opset}; pass {found} or a "
                    "later one, or None for the exporter's choice"
                )
            shorten(program.model)  # type: ignore[union-attr]
            weights = sum(one.nbytes for one in model.state_dict().values())
            program.save(path, external_data=weights > _LARGE)  # type: ignore[union-attr]
    except TomeError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, TomeError):
            raise cause from error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        first = lines[0] if lines else type(cause).__name__
        raise TomeError(
            f"torch.onnx.export cannot export {type(model.model).__name__}: {type(cause).__name__}: {first}. "
            "Check that the unpatched model can be exported (r=0); for a model of transformers, load it with "
            'attn_implementation="sdpa".'
        ) from error
