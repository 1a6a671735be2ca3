"""ViTs of timm with relative position biases: Beit and VisionTransformerRelPos.

A bias for each pair of positions is added to the scores, from a table in each block, from one shared
by all, or both (Beit). The bias of two merged tokens is the mean over both groups, so each sample has its own
bias, as large as the scores: the cost is memory. An attention with its own table does not accept such a bias,
so the attention half is ours: torch's fused kernel between the module's own projections, norms and
dropouts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.positions import merge_position_bias
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.families.attention import add_biases, attend_heads, split_heads
from tomecore.adapters.families.readers import ForwardIntermediates
from tomecore.adapters.families.timm.common import (
    DROP_PATHS,
    MLPS,
    NORMS,
    SCALES,
    feed,
    feed_gamma,
    feed_post_norm,
    pools_over_tokens,
    prefix,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["BEIT", "FRAMEWORK", "REL_POS", "REL_POS_POST_NORM", "SPECS"]

FRAMEWORK = "torch"

_MERGED = "merged bias"


def attend_beit(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v = split_heads(beit_qkv(host, attn, block.norm1(x)), attn.num_heads)
    y = attend_and_project(host, attn, (q, k, v), add_biases(beit_bias(attn, block_kwargs), bias))
    if block.gamma_1 is not None:
        y = block.gamma_1 * y
    return x + block.drop_path1(y), k


def carry_beit(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    bias = beit_bias(block.attn, block_kwargs)
    if bias is None:
        return {}
    return {_MERGED: merge_position_bias(host, bias if len(bias.shape) == 4 else bias[None], state)}


def beit_bias(attn: Any, block_kwargs: Kwargs) -> Array | None:
    """Return the bias (B or 1, H, N, N) of current tokens, or None; a shared one may lack the first axis."""
    if _MERGED in block_kwargs:
        return block_kwargs[_MERGED]
    bias = block_kwargs.get("shared_rel_pos_bias")
    if attn.relative_position_bias_table is None:
        return bias
    own = attn._get_rel_pos_bias()
    return own if bias is None else own + bias


def beit_qkv(host: Host, attn: Any, y: Tokens) -> Array:
    """Return the projection with the biases of queries and values, which ``attn.qkv`` does not hold."""
    if attn.q_bias is None:
        return attn.qkv(y)
    bias = host.backend().xp.concat([attn.q_bias, attn.k_bias, attn.v_bias])
    if getattr(attn, "qkv_bias_separate", False):
        return attn.qkv(y) + bias
    return host.linear(y, attn.qkv.weight, bias)


def attend_rel_pos(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    y, k = rel_pos_attention(host, block, block.norm1(x), bias, block_kwargs)
    return x + block.drop_path1(block.ls1(y)), k


def attend_rel_pos_post_norm(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    y, k = rel_pos_attention(host, block, x, bias, block_kwargs)
    return x + block.drop_path1(block.norm1(y)), k


def rel_pos_attention(
    host: Host, block: Any, y: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v = split_heads(attn.qkv(y), attn.num_heads)
    # transposed as in timm, so that strides and last bits agree
    q = attn.q_norm(q.transpose(1, 2)).transpose(1, 2)
    k = attn.k_norm(k.transpose(1, 2)).transpose(1, 2)
    bias = add_biases(rel_pos_bias(attn, block_kwargs), bias)
    return attend_and_project(host, attn, (q, k, v), bias), k


def carry_rel_pos(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    bias = rel_pos_bias(block.attn, block_kwargs)
    return {} if bias is None else {_MERGED: merge_position_bias(host, bias, state)}


def rel_pos_bias(attn: Any, block_kwargs: Kwargs) -> Array | None:
    """Return the bias (B or 1, H, N, N) of current tokens, or None; a block's table hides a shared one."""
    if _MERGED in block_kwargs:
        return block_kwargs[_MERGED]
    if attn.rel_pos is not None:
        return attn.rel_pos.get_bias()
    return block_kwargs.get("shared_rel_pos")


def attend_and_project(
    host: Host, attn: Any, qkv: tuple[Array, Array, Array], bias: Array | None
) -> Array:
    dropout = attn.attn_drop.p if attn.training else 0.0
    scale = 1 / qkv[0].shape[-1] ** 0.5  # attn.scale, to the last bit of the fused kernel
    return attn.proj_drop(attn.proj(attend_heads(host, qkv, bias, dropout, scale)))


BEIT = Spec(
    family="timm Beit",
    blocks=("timm.models.beit.Block",),
    towers={"timm.models.beit.Beit": "blocks"},
    children={
        "norm1": NORMS,
        "attn": ("timm.models.beit.Attention",),
        "drop_path1": DROP_PATHS,
        "norm2": NORMS,
        "mlp": MLPS,
        "drop_path2": DROP_PATHS,
    },
    tensors=("gamma_1", "gamma_2"),
    attend=attend_beit,
    feed=feed_gamma,
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    arguments=("shared_rel_pos_bias",),
    carry=carry_beit,
    why_restore=pools_over_tokens,
    bypasses=("attn",),
    tower_mixin=ForwardIntermediates,
    notes="BEiT, BEiT v2; biases of merged tokens are as large as the attention scores",
)

_REL_POS_CHILDREN = {
    "norm1": NORMS,
    "attn": ("timm.models.vision_transformer_relpos.RelPosAttention",),
    "drop_path1": DROP_PATHS,
    "norm2": NORMS,
    "mlp": MLPS,
    "drop_path2": DROP_PATHS,
}

REL_POS = Spec(
    family="timm VisionTransformerRelPos",
    blocks=("timm.models.vision_transformer_relpos.RelPosBlock",),
    towers={"timm.models.vision_transformer_relpos.VisionTransformerRelPos": "blocks"},
    children={**_REL_POS_CHILDREN, "ls1": SCALES, "ls2": SCALES},
    attend=attend_rel_pos,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    arguments=("shared_rel_pos",),
    carry=carry_rel_pos,
    why_restore=pools_over_tokens,
    bypasses=("attn",),
    tower_mixin=ForwardIntermediates,
    notes="biases of merged tokens are as large as the attention scores",
)

REL_POS_POST_NORM = replace(
    REL_POS,
    family="timm VisionTransformerRelPos (post-norm)",
    blocks=("timm.models.vision_transformer_relpos.ResPostRelPosBlock",),
    children=_REL_POS_CHILDREN,
    attend=attend_rel_pos_post_norm,
    feed=feed_post_norm,
    notes="as above",
)

SPECS = (BEIT, REL_POS, REL_POS_POST_NORM)
