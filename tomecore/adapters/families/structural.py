"""Blocks that no family describes, but built like timm's: pre-norm attention, then a pre-norm MLP.

The block must have no children except those with timm's names; its attention must accept
``attn_mask`` and pass its keys through ``k_norm``. That is not enough to trust a forward, so each block
is tested on a copy first (``engine/verify.py``). This spec is used only if its halves reproduce the
block's own numbers, the attention does not depend on the order of tokens, and the MLP treats
each token by itself.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.timm.common import prefix
from tomecore.backends import Bias, Tokens

__all__ = ["FRAMEWORK", "PRE_NORM", "SPECS"]

FRAMEWORK = "torch"


def attend(host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs) -> Tokens:
    return x + apply_scale(block, block.attn(block.norm1(x), attn_mask=bias), ("ls1", "drop_path1"))


def feed(block: Any, x: Tokens) -> Tokens:
    return x + apply_scale(block, block.mlp(block.norm2(x)), ("ls2", "drop_path2"))


def apply_scale(block: Any, y: Tokens, names: tuple[str, ...]) -> Tokens:
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
    prefix=prefix,
    patches="patch_embed",
    why_restore=why_restore,
    notes=(
        "children named as in timm; each block is tested on a copy: its halves must equal its forward, and "
        "treat tokens alike"
    ),
)

#: empty, because the adapter uses ``PRE_NORM`` only as its fallback
SPECS: tuple[Spec, ...] = ()
