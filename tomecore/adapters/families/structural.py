"""Blocks that no family describes, but built like timm's: pre-norm attention, then a pre-norm MLP.

The block must have no children except those with timm's names; its attention must accept
``attn_mask`` and pass its keys through ``k_norm``. That is not enough to trust a forward, so each block
is tested on a copy first (``engine/verify.py``). This spec is used only if its halves reproduce the
block's own numbers, the attention does not depend on the order of tokens, and the MLP treats
each token by itself.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.timm import vit as timm
from tomecore.backends import Array

__all__ = ["FRAMEWORK", "PRE_NORM", "SPECS"]

FRAMEWORK = "torch"


def attend(host: Any, block: Any, x: Array, bias: Array | None, block_kwargs: Kwargs) -> Array:
    return x + scaled(block, block.attn(block.norm1(x), attn_mask=bias), ("ls1", "drop_path1"))


def feed(block: Any, x: Array) -> Array:
    return x + scaled(block, block.mlp(block.norm2(x)), ("ls2", "drop_path2"))


def scaled(block: Any, y: Array, names: tuple[str, ...]) -> Array:
    """Apply LayerScale and drop paths, if the block has them; one ``drop_path`` may serve both halves."""
    for name in (*names, "drop_path"):
        module = getattr(block, name, None)
        if module is not None:
            y = module(y)
    return y


def why_restore(tower: Any) -> str | None:
    return "how this model pools its tokens is unknown"


_CHILDREN = (
    *("norm1", "attn", "ls1", "drop_path1"),
    *("norm2", "mlp", "ls2", "drop_path2", "drop_path"),
)

PRE_NORM = Spec(
    family="pre-norm ViT blocks of any library, by structure",
    blocks=("*",),
    towers={"*": "blocks"},
    children=dict.fromkeys(_CHILDREN, ("*",)),
    attend=attend,
    feed=feed,
    key="attn.k_norm",
    prefix=timm.prefix,
    patches="patch_embed",
    why_restore=why_restore,
    notes=(
        "children named as in timm; each block proves on a copy that its halves are its forward, and that "
        "they treat tokens alike"
    ),
)

#: empty, because the adapter uses ``PRE_NORM`` only as its fallback
SPECS: tuple[Spec, ...] = ()
