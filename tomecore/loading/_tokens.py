"""Count the tokens of an image without running the blocks of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomecore.adapters import handle_of
from tomecore.frameworks import evaluating, to_tensor
from tomecore.loading._failures import shape_errors
from tomecore.loading._loaded import Loaded

__all__ = ["tokens_of"]


class _Reached(BaseException):
    """The first block was reached: not an error, so no ``except Exception`` of a library catches it."""


def tokens_of(loaded: Loaded) -> int:
    """Return how many tokens enter the first block for one image, prefix tokens included.

    The model, which must be patched, runs on an image of zeros up to its first block.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentValueError: the model does not accept images of its shape.
    """
    handle = handle_of(loaded.model)
    found: list[int] = []

    def stop(module: Any, inputs: tuple[Any, ...]) -> None:
        found.append(int(inputs[0].shape[handle.token_axis]))
        raise _Reached

    hook = handle.blocks[0].register_forward_pre_hook(stop)
    try:
        with shape_errors(loaded.input_shape), evaluating(loaded.model):
            zeros = np.zeros((1, *loaded.input_shape), dtype=np.float32)
            loaded.model(to_tensor(loaded.model, zeros))
    except _Reached:
        return found[0]
    finally:
        hook.remove()
    raise AssertionError("a patched model calls its first block")
