"""Weights files of Paddle models; safetensors is imported when a file of that kind is read."""

from __future__ import annotations

import os

import paddle
from paddle import nn

from tomecore.models._arguments import check_fit
from tomecore.models.pdparams import read_pdparams

__all__ = ["load_weights"]


def load_weights(model: nn.Layer, path: str | os.PathLike[str]) -> nn.Layer:
    """Load a weights file strictly; nothing is changed unless every name and shape fits.

    Args:
        model: A model of this module; its dtype is kept.
        path: A ``.safetensors`` file, or a ``.pdparams`` file, which is read without running any code
            in it. Linear weights stored (out, in), as torch keeps them, are recognised by
            the shape of the first ``qkv`` and transposed.

    Returns:
        The model.

    Raises:
        ValueError: The kind of file is unknown or it holds more than arrays, or names or shapes do
            not fit.
        ImportError: A ``.safetensors`` file without safetensors installed.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1]
    if suffix == ".safetensors":
        try:
            from safetensors.numpy import load_file
        except ImportError as error:
            raise ImportError(
                f"reading {path} needs safetensors: pip install safetensors"
            ) from error
        state = load_file(path)
    elif suffix == ".pdparams":
        state = read_pdparams(path)
    else:
        raise ValueError(f"`path` must end in .safetensors or .pdparams; got {path!r}")
    own = model.state_dict()
    qkv = "blocks.0.attn.qkv.weight"
    if qkv in own and qkv in state and list(state[qkv].shape) == list(own[qkv].shape)[::-1]:
        state = {name: value.T if value.ndim == 2 else value for name, value in state.items()}
    check_fit(path, own, state)
    model.set_state_dict(
        {name: paddle.to_tensor(state[name]).astype(own[name].dtype) for name in own}
    )
    return model
