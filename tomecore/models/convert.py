"""Convert plain ViT weights between timm's layout and the layout of PLSC and PaddleClas.

The names are the same, except for weights that only one side has. Paddle stores the weight of a linear layer
as (in, out), timm as (out, in). Every key is listed here or refused; otherwise a weight without a place would
be lost silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.frameworks import runtime_of, to_numpy

__all__ = ["convert_weights", "load_arrays", "transfer_weights"]

_LAYOUTS = ("timm", "plsc")
_SAME = re.compile(
    r"(cls_token|dist_token|pos_embed"
    r"|patch_embed\.proj\.(weight|bias)"
    r"|blocks\.\d+\.norm[12]\.(weight|bias)"
    r"|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.bias"
    r"|(norm|fc_norm)\.(weight|bias)"
    r"|(head|head_dist)\.bias)"
)
_LINEAR = re.compile(r"(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])|head|head_dist)\.weight")
_SKIPPED = {"StructuredToParameterName@@"}  # bookkeeping that paddle.save adds


def convert_weights(
    weights: Mapping[str, Any], *, source: str, target: str
) -> dict[str, np.ndarray]:
    """Convert a plain ViT's weights between layouts.

    Args:
        weights: a state dict; arrays of any library.
        source: their layout: "timm" (and ``tomecore.models.torch``), or "plsc" (PLSC,
            PaddleClas, ppim, ``tomecore.models.paddle``).
        target: the layout to convert to.

    Returns:
        name -> NumPy array, for every weight.

    Raises:
        ArgumentValueError: an unknown layout; a weight that has no place in the other layout
            (LayerScale, query-key norm, registers, ...), or a linear weight that is not 2-D.
    """
    for value, name in ((source, "source"), (target, "target")):
        if value not in _LAYOUTS:
            raise ArgumentValueError(
                f"`{name}` must be one of {', '.join(map(repr, _LAYOUTS))}; got {value!r}"
            )
    if not isinstance(weights, Mapping):
        raise ArgumentTypeError(
            f"`weights` must be a mapping of names to arrays, such as model.state_dict(); "
            f"got {type(weights).__name__}"
        )
    weights = {name: value for name, value in weights.items() if name not in _SKIPPED}
    unknown = [n for n in weights if not (_SAME.fullmatch(n) or _LINEAR.fullmatch(n))]
    if unknown:
        raise ArgumentValueError(
            f"{len(unknown)} of {len(weights)} weights have no place in a plain ViT of the other "
            f"layout: {', '.join(unknown[:6])}{', ...' if len(unknown) > 6 else ''}. Only plain ViTs "
            "(class and distillation token, no LayerScale, no query-key norm) convert."
        )
    converted = {}
    for name, value in weights.items():
        array = to_numpy(value)
        if _LINEAR.fullmatch(name) and source != target:
            if array.ndim != 2:
                raise ArgumentValueError(
                    f"{name!r} must be the 2-D weight of a linear layer; got shape {array.shape}"
                )
            array = np.ascontiguousarray(array.T)
        converted[name] = array
    return converted


def transfer_weights(source: Any, target: Any) -> Any:
    """Load the weights of one plain ViT into another, of the same or the other framework.

    Args:
        source: a torch or Paddle plain ViT.
        target: the same architecture; changed in place, keeping its dtype.

    Returns:
        ``target``.

    Raises:
        ArgumentValueError: as in :func:`convert_weights`, or a key or shape that only one of them has;
            ``target`` is unchanged.
    """
    weights = convert_weights(
        source.state_dict(), source=runtime_of(source).layout, target=runtime_of(target).layout
    )
    return load_arrays(target, weights)


def load_arrays(model: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Load NumPy arrays, already in the layout of ``model``, strictly, and return ``model``.

    Raises:
        ArgumentValueError: a key or shape that only one side has; ``model`` is unchanged.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    wrong = [
        f"{name} (given {given.get(name, 'none')}, wanted {own.get(name, 'none')})"
        for name in sorted({*own, *given})
        if own.get(name) != given.get(name)
    ]
    if wrong:
        raise ArgumentValueError(
            f"the weights are not those of this {type(model).__name__}; {len(wrong)} differ: "
            f"{', '.join(wrong[:6])}{', ...' if len(wrong) > 6 else ''}"
        )
    runtime_of(model).load_state(model, weights)
    return model
