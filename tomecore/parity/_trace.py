"""Run one patched model and record every layer, as NumPy arrays in the numbering of original tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tomecore.adapters import Handle, handle_of
from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.errors import UnsupportedModelError
from tomecore.frameworks import predict, runtime_of, to_numpy

__all__ = ["Merge", "Trace", "comparable_handle", "trace"]


@dataclass(frozen=True)
class Merge:
    """One merge: keys (B, N, D), slots (B, N), kept (B, n), merged (B, r), sizes (B, n), x (B, n, C)."""

    keys: np.ndarray
    slots: np.ndarray
    kept: np.ndarray
    merged: np.ndarray
    sizes: np.ndarray
    x: np.ndarray


@dataclass
class Trace:
    """The record of one forward pass.

    Args:
        embedding: input of block 0, (B, N, C).
        blocks: output of each block, (B, N, C): every original token has the value of its slot.
        merges: the merges, by the layers that merged.
        output: output of the model, (B, classes).
    """

    embedding: np.ndarray
    blocks: list[np.ndarray] = field(default_factory=list)
    merges: dict[int, Merge] = field(default_factory=dict)
    output: np.ndarray = field(default_factory=lambda: np.empty(0))


def comparable_handle(model: Any, name: str) -> Handle:
    """Return ``model.tome`` of a model whose tokens can be compared after every layer.

    Raises:
        NotPatchedError: the argument called ``name`` is not patched.
        UnsupportedModelError: its last block does not compute all tokens, which are compared here.
    """
    tome = handle_of(model, name)
    if tome.trim_last:
        raise UnsupportedModelError(
            f"`{name}` ({type(model).__name__}) was patched with trim_last=True, and its last block computes "
            "the prefix tokens only, but parity compares all tokens: call apply_patch again without it"
        )
    return tome


def trace(model: Any, images: np.ndarray, name: str) -> Trace:
    """Run ``model``, the argument called ``name``, on (B, C, H, W) in evaluation mode."""
    tome = comparable_handle(model, name)
    axes = (1, 0, 2) if tome.token_axis == 0 else (0, 1, 2)
    entered: list[np.ndarray] = []
    blocks: dict[int, np.ndarray] = {}
    merges: dict[int, Merge] = {}

    def array(x: Any) -> np.ndarray:
        # Copy, because a library that adds in place would overwrite what is kept here.
        copied: np.ndarray = np.array(to_numpy(x[0] if isinstance(x, tuple) else x)).transpose(axes)
        return copied

    def enters(module: Any, args: Any, kwargs: Any) -> None:
        entered.append(array(args[0] if args else next(iter(kwargs.values()))))

    def leaves(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            blocks[layer] = array(output)

        return hook

    def observer(layer: int, key: Array, plan: MergePlan, sizes: Array, x: Array) -> None:
        arrays = (key, plan.slots, plan.kept, plan.merged, sizes, x)
        merges[layer] = Merge(*(np.array(to_numpy(one)) for one in arrays))

    runtime = runtime_of(model)
    handles = [tome.blocks[0].register_forward_pre_hook(enters, with_kwargs=True)]
    handles += [runtime.after_forward(block, leaves(i)) for i, block in enumerate(tome.blocks)]
    try:
        with tome.watch(observer):
            output = predict(model, images, len(images))
    finally:
        for handle in handles:
            handle.remove()
    if len(entered) != 1 or len(entered[0]) != len(images) or len(blocks) != len(tome.blocks):
        raise UnsupportedModelError(
            f"`{name}` ({type(model).__name__}) does not build one sequence of tokens from each image and "
            "run it through every block once, so its layers cannot be compared image by image"
        )
    found = Trace(entered[0], [], merges, output)
    source = np.broadcast_to(np.arange(entered[0].shape[1]), entered[0].shape[:2])
    for layer in range(len(blocks)):
        if layer in merges:
            source = np.take_along_axis(merges[layer].slots, source, axis=1)
        x = blocks[layer]
        if x.shape[1] != source.shape[1]:  # not restored by the block itself
            x = np.take_along_axis(x, source[:, :, None], axis=1)
        found.blocks.append(x)
    return found
