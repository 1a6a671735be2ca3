"""The VisionTransformer of open_clip (CLIP, CoCa) and OpenAI's original.

Only the vision tower is patched; text towers have the same blocks and stay as they are.
Towers that open_clip takes from timm are found as timm's. The default block attends with torch's
MultiheadAttention, whose half is ours (``multihead.py``), batch first or sequence first. The custom
block has its own attention, which is called as a module; the key is the output of its ``ln_k``. Blocks with
cross-attention (``ln_1_kv``) or scaled cosine attention are refused.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.classes import IDENTITY, NORMS
from tomecore.adapters.families.halves import feed_ln_2
from tomecore.adapters.families.multihead import (
    MULTIHEAD,
    anatomy_of,
    attention,
    trim_of,
    why_not,
)
from tomecore.adapters.families.readers import ForwardIntermediates
from tomecore.backends import Array, Bias, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

_TOWERS = {"open_clip.transformer.VisionTransformer": "transformer.resblocks"}
_NORMS = (
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
    "clip.model.LayerNorm",
    *NORMS,
)
_SCALES = ("open_clip.transformer.LayerScale", *IDENTITY)
_MLPS = ("torch.nn.modules.container.Sequential",)


def attend(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> tuple[Tokens, Array]:
    y, key = attention(host, block.attn, block.ln_1(x), bias, rows)
    return (x if rows is None else x[:, :rows]) + block.ls_1(y), key


def feed(block: Any, x: Tokens) -> Tokens:
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def attend_custom(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    y = block.attn(block.ln_1(x), attn_mask=bias)
    return x + block.ls_1(block.ln_attn(y))


def attend_openai(
    host: Host,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> tuple[Tokens, Array]:
    y, key = attention(host, block.attn, block.ln_1(x), bias, rows)
    return (x if rows is None else x[:, :rows]) + y, key


def prefix(tower: Any) -> int:
    """Return 1, for the class token."""
    return 1


def batch_first(tower: Any) -> bool:
    first = getattr(tower.transformer, "batch_first", None)
    if first is None:
        raise UnsupportedModelError(
            "this open_clip is too old: its Transformer has no batch_first. tomecore is tested with "
            "open_clip 2.30 and later"
        )
    for index, block in enumerate(tower.transformer.resblocks):
        if bool(getattr(block.attn, "batch_first", True)) != first:
            raise UnsupportedModelError(
                f"transformer.batch_first is {first}, but resblocks[{index}].attn.batch_first is not, so "
                "it would attend across images"
            )
    return bool(first)


def sequence_first(tower: Any) -> bool:
    return False


def refuse(block: Any) -> str | None:
    return why_not(block.attn)


def refuse_custom(block: Any) -> str | None:
    if block.attn.logit_scale is not None:
        return (
            "its attention compares by scaled cosine (scaled_cosine_attn) and does not use ln_k, whose "
            "output matches tokens"
        )
    return None


def refuse_openai(block: Any) -> str | None:
    if block.attn_mask is not None:
        return "it has an attn_mask, which describes all tokens while merging leaves fewer"
    if block.attn.batch_first:
        return "its MultiheadAttention has batch_first=True, and would attend across the images"
    return why_not(block.attn)


def why_restore(tower: Any) -> str | None:
    how = None
    if tower.attn_pool is not None:
        how = "an attentional pooler"
    elif tower.pool_type == "avg":
        how = "pool_type='avg'"
    if how is None:
        return None
    return (
        f"the model pools over tokens ({how}), and would count a merged token once instead of as "
        "often as its size"
    )


def why_not_rows(tower: Any) -> str | None:
    """Return why more than the class token is read, or None."""
    if tower.attn_pool is not None:
        return "the model pools over all tokens (an attentional pooler)"
    if tower.pool_type != "tok":
        return f"the model pools over all tokens, or returns them (pool_type={tower.pool_type!r})"
    if tower.output_tokens:
        return "the model returns all tokens (output_tokens=True)"
    return None


ANATOMY = anatomy_of(attend, "attn", norm="ln_1")
ANATOMY_OPENAI = anatomy_of(attend_openai, "attn", norm="ln_1")

RESIDUAL = Spec(
    family="open_clip VisionTransformer",
    blocks=("open_clip.transformer.ResidualAttentionBlock",),
    towers=_TOWERS,
    children={
        "ln_1": _NORMS,
        "attn": MULTIHEAD,
        "ls_1": _SCALES,
        "ln_2": _NORMS,
        "mlp": _MLPS,
        "ls_2": _SCALES,
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    patches="conv1",
    arguments=("k_x", "v_x", "attn_mask"),
    batch_first=batch_first,
    why_restore=why_restore,
    bypasses=("attn",),
    refuse=refuse,
    tower_mixin=ForwardIntermediates,
    anatomy=ANATOMY,
    trim=trim_of(
        ANATOMY,
        towers=tuple(_TOWERS),
        around=("open_clip.model.CLIP", "open_clip.model.CustomTextCLIP"),
        within=("open_clip.transformer.Transformer",),
        why_not=why_not_rows,
    ),
    notes=(
        "the vision tower of a CLIP or CoCa; text towers stay as they are; timm trunks are "
        "found too"
    ),
)

CUSTOM = Spec(
    family="open_clip VisionTransformer (custom blocks)",
    blocks=("open_clip.transformer.CustomResidualAttentionBlock",),
    towers=_TOWERS,
    children={
        "ln_1": _NORMS,
        "attn": ("open_clip.transformer.Attention",),
        "ln_attn": _NORMS,
        "ls_1": _SCALES,
        "ln_2": _NORMS,
        "mlp": _MLPS,
        "ls_2": _SCALES,
    },
    attend=attend_custom,
    feed=feed,
    key="attn.ln_k",
    prefix=prefix,
    patches="conv1",
    arguments=("attn_mask",),
    batch_first=batch_first,
    why_restore=why_restore,
    refuse=refuse_custom,
    tower_mixin=ForwardIntermediates,
    notes="the same, with query-key norm, head scale, inner norms",
)

OPENAI = Spec(
    family="OpenAI CLIP VisionTransformer",
    blocks=("clip.model.ResidualAttentionBlock",),
    towers={"clip.model.VisionTransformer": "transformer.resblocks"},
    children={"attn": MULTIHEAD, "ln_1": _NORMS, "mlp": _MLPS, "ln_2": _NORMS},
    attend=attend_openai,
    feed=feed_ln_2,
    key_heads=2,
    prefix=prefix,
    patches="conv1",
    batch_first=sequence_first,
    bypasses=("attn",),
    refuse=refuse_openai,
    anatomy=ANATOMY_OPENAI,
    trim=trim_of(
        ANATOMY_OPENAI,
        towers=("clip.model.VisionTransformer",),
        around=("clip.model.CLIP",),
        within=("clip.model.Transformer",),
    ),
    notes="the vision tower of a CLIP",
)

SPECS = (RESIDUAL, CUSTOM, OPENAI)
