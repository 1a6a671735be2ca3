"""The VisionTransformer of timm with its standard Block, and tomecore's ViT, which has the same anatomy.

It supports LayerScale, query-key norm, attention norm and gates, differential attention, drop path,
distillation and register tokens, all pools, and NaFlexVit's padded batches. The attention is timm's
own module; the key is the output of its ``k_norm``, and the bias is passed as ``attn_mask``.
"""

from __future__ import annotations

from typing import Any, Protocol

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Anatomy, Kwargs, Projected, Spec
from tomecore.adapters.families.attention import (
    FusedAttention,
    Layer,
    attend_heads,
    fused_qkv,
    trim_with,
)
from tomecore.adapters.families.readers import ForwardIntermediates
from tomecore.adapters.families.timm.common import (
    ARGUMENTS,
    ATTENTIONS,
    DROP_PATHS,
    MLPS,
    NORMS,
    SCALES,
    TOWERS,
    feed,
    pools_over_tokens,
    prefix,
    real_tokens,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS", "VIT"]

FRAMEWORK = "torch"


class Attention(FusedAttention, Protocol):
    """The parts of timm's attention that :func:`attend_rows` uses; ``norm`` and ``gate`` may be missing."""

    training: bool
    q_norm: Layer
    k_norm: Layer
    attn_drop: Any
    proj: Layer
    proj_drop: Layer
    norm: Any
    gate: Any


class AttentionHalf(Protocol):
    """The modules of the attention half of a block."""

    norm1: Layer
    attn: Any
    ls1: Layer
    drop_path1: Layer


def attend(
    host: Host,
    block: AttentionHalf,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> Tokens:
    y = block.norm1(x)
    if rows is None:
        y = block.attn(y, attn_mask=bias)
    else:
        x, y = x[:, :rows], attend_rows(host, block.attn, y, bias, rows)
    return x + block.drop_path1(block.ls1(y))


def qkv(
    host: Host, attn: Attention, y: Tokens, block_kwargs: Kwargs | None, rows: int | None
) -> Projected:
    """Return q, k, v and the scale of timm's attention; queries and keys are normalized per head."""
    q, k, v, scale = fused_qkv(host, attn, y, block_kwargs, rows)
    return apply_norm(host, attn.q_norm, q), apply_norm(host, attn.k_norm, k), v, scale


def attend_rows(host: Host, attn: Attention, y: Tokens, bias: Bias | None, rows: int) -> Tokens:
    """Return the output of ``attn`` for the first ``rows`` tokens of ``y``."""
    q, k, v, scale = qkv(host, attn, y, None, rows)
    out = attend_heads(host, (q, k, v), bias, attn.attn_drop.p if attn.training else 0.0, scale)
    out = out if getattr(attn, "norm", None) is None else attn.norm(out)
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(y[:, :rows]).sigmoid()
    return attn.proj_drop(attn.proj(out))


def apply_norm(host: Host, norm: Layer, x: Array) -> Array:
    """Return ``norm`` of x (B, N, H, D), which it gets in timm's layout (B, H, N, D)."""
    xp = host.backend().xp
    y: Array = xp.permute_dims(norm(xp.permute_dims(x, (0, 2, 1, 3))), (0, 2, 1, 3))
    return y


def why_not_rows(tower: Any) -> str | None:
    """Return why more than the prefix tokens are read, or None."""
    if tower.global_pool == "":
        return "the model returns all tokens (global_pool='')"
    if pools_over_tokens(tower) is not None:
        return f"the model pools over all tokens (global_pool={tower.global_pool!r})"
    return None


_PARTS = ("qkv", "q_norm", "k_norm", "attn_drop", "proj", "proj_drop")
ANATOMY = Anatomy(
    of=attend,
    attention="attn",
    norm="norm1",
    qkv=qkv,
    classes={
        "timm.layers.attention.Attention": (*_PARTS, "norm", "gate"),
        "tomecore.models.torch.Attention": _PARTS,
    },
)

VIT = Spec(
    family="timm VisionTransformer",
    blocks=("timm.models.vision_transformer.Block", "tomecore.models.torch.Block"),
    towers={**TOWERS, "tomecore.models.torch.VisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (*ATTENTIONS, "tomecore.models.torch.Attention"),
        "ls1": SCALES,
        "drop_path1": DROP_PATHS,
        "norm2": NORMS,
        "mlp": (*MLPS, "tomecore.models.torch.Mlp"),
        "ls2": SCALES,
        "drop_path2": DROP_PATHS,
    },
    attend=attend,
    feed=feed,
    key="attn.k_norm",
    prefix=prefix,
    patches="patch_embed",
    arguments=ARGUMENTS,
    accepts={"is_causal": False},
    mask="attn_mask",
    real_tokens=real_tokens,
    why_restore=pools_over_tokens,
    tower_mixin=ForwardIntermediates,
    anatomy=ANATOMY,
    trim=trim_with(
        ANATOMY,
        towers=(
            *TOWERS,
            "timm.models.deit.VisionTransformerDistilled",
            "tomecore.models.torch.VisionTransformer",
        ),
        keys={"attn.qkv": 2 / 3},
        why_not=why_not_rows,
    ),
    notes=(
        "DeiT, DeiT III, DINOv2, SigLIP, CLIP, MAE, AugReg ...; LayerScale, query-key norm, "
        "gates, registers, all pools; padding masks"
    ),
)

SPECS = (VIT,)
