"""Checks that the plain ViTs of all frameworks share: arguments, and whether weights fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tomecore.errors import ArgumentValueError

__all__ = ["check_architecture", "check_fit"]

Pair = tuple[int, int]


def check_architecture(
    *,
    img_size: int | Pair,
    patch_size: int | Pair,
    in_chans: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    drop_path_rate: float,
    class_token: bool,
    distilled: bool,
    global_pool: str,
    **classes: int,
) -> tuple[Pair, Pair]:
    """Check the arguments of a plain ViT; return image and patch size as (height, width).

    ``classes`` is the number of classes, under the framework's name for it.

    Raises:
        ArgumentValueError: an argument is out of range; the message names it, its value and what is allowed.
    """
    image, patch = _pair("img_size", img_size), _pair("patch_size", patch_size)
    if image[0] < patch[0] or image[1] < patch[1]:
        raise ArgumentValueError(
            f"`patch_size` must be at most `img_size`, {img_size!r}; got {patch_size!r}"
        )
    counts = {"in_chans": in_chans, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ArgumentValueError(f"`{name}` must be an integer of at least 1; got {value!r}")
    for name, value in classes.items():
        if not isinstance(value, int) or value < 0:
            raise ArgumentValueError(
                f"`{name}` must be an integer of at least 0 (0: no head); got {value!r}"
            )
    if embed_dim % num_heads:
        raise ArgumentValueError(
            f"`embed_dim` must be a multiple of `num_heads`, {num_heads}; got {embed_dim!r}"
        )
    if mlp_ratio <= 0.0:
        raise ArgumentValueError(f"`mlp_ratio` must be above 0; got {mlp_ratio!r}")
    if not 0.0 <= drop_path_rate < 1.0:
        raise ArgumentValueError(
            f"`drop_path_rate` must be at least 0 and below 1; got {drop_path_rate!r}"
        )
    if global_pool not in ("token", "avg"):
        raise ArgumentValueError(f"`global_pool` must be 'token' or 'avg'; got {global_pool!r}")
    if not class_token and (distilled or global_pool == "token"):
        raise ArgumentValueError(
            "`class_token=False` needs `global_pool='avg'` and `distilled=False`; got "
            f"global_pool={global_pool!r}, distilled={distilled!r}"
        )
    if distilled and global_pool != "token":
        raise ArgumentValueError(
            f"`distilled=True` needs `global_pool='token'`; got {global_pool!r}"
        )
    return image, patch


def check_fit(path: str, own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that weights ``given`` have the names and shapes of a model's ``own``.

    Raises:
        ArgumentValueError: a weight is missing or unexpected, or has another shape; the message lists all.
    """
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
            for name in sorted(own.keys() & given.keys())
            if tuple(given[name].shape) != tuple(own[name].shape)
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ArgumentValueError(f"the weights in {path} do not fit the model. {found}")


def _pair(name: str, value: int | Pair) -> Pair:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= 1 for v in pair):
        raise ArgumentValueError(
            f"`{name}` must be an integer of at least 1, or two of them (height, width); got {value!r}"
        )
    return pair[0], pair[1]
