"""Weights files of PyTorch models; safetensors is imported when a file of that kind is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tomecore.models._arguments import check_fit

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a weights file strictly; nothing is changed unless every name and shape fits.

    Args:
        model: The model; its dtypes and devices are kept.
        path: A ``.safetensors`` file, or ``.pt`` / ``.pth`` (read with ``weights_only=True``; the
            state dict may lie under "model" or "state_dict").

    Returns:
        The model.

    Raises:
        ValueError: The kind of file is unknown, or names or shapes do not fit.
        ImportError: A ``.safetensors`` file without safetensors installed.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    state: Any
    if suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs safetensors: pip install safetensors"
            ) from error
        state = load_file(path)
    elif suffix in (".pt", ".pth"):
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
                state = state[key]
        if not isinstance(state, Mapping) or not all(hasattr(v, "shape") for v in state.values()):
            raise ValueError(
                f"{path} holds no state dict of tensors; save model.state_dict() to it"
            )
    else:
        raise ValueError(f"`path` must end in .safetensors, .pt or .pth; got {path!r}")
    own = model.state_dict()
    check_fit(path, own, state)
    model.load_state_dict(state)
    return model
