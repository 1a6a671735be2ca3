"""Towers of timm with rotary positions: Eva, NaFlexVit, and the encoders of Qwen3-VL, DeepSeek and Gemma 4.

Eva is EVA, EVA02, DINOv3, PE, RoPE-ViT and Sapiens2. Their attention accepts the bias as ``attn_mask`` and
applies ``k_norm`` to the key before the rotation; with grouped queries there are fewer key heads, and the
mean is over those. Every block gets the table of rotations for all patches, as (N, D), per head, per sample
or both; the table of merged tokens is the mean over each group. After the first merge there is one table per
sample, and rotations of merged tokens are shorter than 1, because they are means over keys at several
positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.positions import merge_rotary_table
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.families.readers import ForwardIntermediates
from tomecore.adapters.families.timm.common import (
    DROP_PATHS,
    MLPS,
    NORMS,
    feed_gamma,
    feed_post_norm,
    pools_over_tokens,
    prefix,
    real_tokens,
)
from tomecore.backends import Bias, Tokens

__all__ = ["DEEPSEEK", "EVA", "EVA_POST_NORM", "FRAMEWORK", "GEMMA", "SPECS"]

FRAMEWORK = "torch"

_ATTENTIONS = ("timm.layers.attention.AttentionRope", "timm.models.eva.EvaAttention")
_NAFLEX = {"timm.models.naflexvit.NaFlexVit": "blocks"}


def attend(host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs) -> Tokens:
    y = block.attn(block.norm1(x), rope=block_kwargs.get("rope"), attn_mask=bias)
    gamma = getattr(block, "gamma_1", None)
    return x + block.drop_path1(y if gamma is None else gamma * y)


def attend_post_norm(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    y = block.attn(x, rope=block_kwargs.get("rope"), attn_mask=bias)
    return x + block.drop_path1(block.norm1(y))


def carry(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    if "rope" in block_kwargs:
        return {**block_kwargs, "rope": merge_rotary_table(host, block_kwargs["rope"], state)}
    return block_kwargs


def attend_gemma(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    y = block.attn(
        block.norm1(x), block_kwargs["rope_cos"], block_kwargs["rope_sin"], attn_mask=bias
    )
    return x + block.drop_path(block.norm2(y))


def feed_gemma(block: Any, x: Tokens) -> Tokens:
    return x + block.drop_path(block.norm4(block.mlp(block.norm3(x))))


def carry_gemma(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    """Merge Gemma's tables, which are (B, N, D), without an axis of heads."""
    tables = {
        name: merge_rotary_table(host, block_kwargs[name][:, None], state)[:, 0]
        for name in ("rope_cos", "rope_sin")
    }
    return {**block_kwargs, **tables}


def lays_out(tower: Any) -> str | None:
    """Return why an encoder needs all tokens, or None; it may lay them out as a grid or pool them."""
    if tower.global_pool == "none":
        return None
    return f"the model lays its tokens out by position, or pools them (global_pool={tower.global_pool!r})"


_CHILDREN = {
    "norm1": NORMS,
    "attn": _ATTENTIONS,
    "drop_path1": DROP_PATHS,
    "norm2": NORMS,
    "mlp": MLPS,
    "drop_path2": DROP_PATHS,
}

EVA = Spec(
    family="timm Eva",
    blocks=("timm.models.eva.EvaBlock",),
    towers={"timm.models.eva.Eva": "blocks", **_NAFLEX},
    children=_CHILDREN,
    tensors=("gamma_1", "gamma_2"),
    attend=attend,
    feed=feed_gamma,
    key="attn.k_norm",
    prefix=prefix,
    patches="patch_embed",
    arguments=("rope", "attn_mask", "is_causal"),
    accepts={"is_causal": False},
    mask="attn_mask",
    real_tokens=real_tokens,
    carry=carry,
    why_restore=pools_over_tokens,
    tower_mixin=ForwardIntermediates,
    notes=(
        "EVA, EVA02, DINOv3, Perception Encoder, RoPE-ViT; rotary tables are averaged over "
        "merged patches"
    ),
)

EVA_POST_NORM = replace(
    EVA,
    family="timm Eva (post-norm)",
    blocks=("timm.models.eva.EvaBlockPostNorm",),
    towers={"timm.models.eva.Eva": "blocks"},
    tensors=(),
    attend=attend_post_norm,
    feed=feed_post_norm,
    notes="",
)

DEEPSEEK = Spec(
    family="timm Qwen3 / DeepSeek vision encoder",
    blocks=("timm.models.eva.EvaBlock", "timm.models.deepseek_vit.DeepseekVitBlock"),
    towers={
        "timm.models.qwen3_vit.Qwen3VitEncoder": "blocks",
        "timm.models.deepseek_vit.DeepseekVitEncoder": "blocks",
    },
    children=_CHILDREN,
    attend=attend,
    feed=feed_gamma,
    key="attn.k_norm",
    prefix=prefix,
    patches="patch_embed",
    arguments=("rope",),
    carry=carry,
    why_restore=lays_out,
    tower_mixin=ForwardIntermediates,
    notes="rotary tables are averaged over merged patches",
)

GEMMA = Spec(
    family="timm Gemma 4 vision encoder",
    blocks=("timm.models.gemma4_vit.Gemma4Block",),
    towers={"timm.models.gemma4_vit.Gemma4VitEncoder": "blocks"},
    children={
        "norm1": NORMS,
        "attn": ("timm.models.gemma4_vit.Gemma4Attention",),
        "norm2": NORMS,
        "norm3": NORMS,
        "mlp": ("timm.models.gemma4_vit.Gemma4GatedMlp",),
        "norm4": NORMS,
        "drop_path": DROP_PATHS,
    },
    attend=attend_gemma,
    feed=feed_gemma,
    key="attn.k_norm",
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    arguments=("rope_cos", "rope_sin", "attn_mask"),
    mask="attn_mask",
    real_tokens=real_tokens,
    carry=carry_gemma,
    why_restore=lays_out,
    tower_mixin=ForwardIntermediates,
    notes="rotary tables are averaged over merged patches",
)

SPECS = (EVA, EVA_POST_NORM, DEEPSEEK, GEMMA)
