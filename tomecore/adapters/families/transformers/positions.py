"""Hugging Face transformers: vision transformers whose layers know the positions of tokens.

DINOv3 rotates queries and keys by tables of all patches, which every layer gets: cos and sin are averaged
over each group. BEiT adds a bias for each pair of tokens. It is computed in the layer from the image's
resolution, or once for all layers and passed as the mask; rows and columns are averaged over each group.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.positions import merge_position_bias, merge_rotary_table
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.families.classes import DROPOUT, IDENTITY, LAYER_NORM
from tomecore.adapters.families.transformers.common import (
    MASKED,
    anatomy_of,
    class_and_registers,
    hidden_states_wanted,
    hooked_by_others,
    no_mask,
    of,
    one_prefix_token,
    trim_of,
    where_pooled,
    with_bias,
)
from tomecore.adapters.families.transformers.vit import attend_dino, feed_dino, heads_vit
from tomecore.backends import Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"


def carry_tables(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    """Merge the rotary tables; the class token and registers have no rows in them."""
    block_kwargs = no_mask(host, block, block_kwargs, state)
    cos, sin = block_kwargs["position_embeddings"]
    tables = (merge_rotary_table(host, cos, state), merge_rotary_table(host, sin, state))
    return {**block_kwargs, "position_embeddings": tables}


def heads_of_dinov3(block: Any) -> int:
    return int(block.attention.num_heads)


def attend_beit(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    attention = block.attention
    block_kwargs = with_positions(block, block_kwargs, x.shape[1])
    y, _ = attention(block.layernorm_before(x), **with_bias(attention, bias, block_kwargs))
    return block.drop_path(block.lambda_1 * block.dropout(y)) + x


def feed_beit(block: Any, x: Tokens) -> Tokens:
    y = block.dropout(block.mlp(block.layernorm_after(x)))
    return block.drop_path(block.lambda_2 * y) + x


def with_positions(block: Any, block_kwargs: Kwargs, num_tokens: int) -> Kwargs:
    """Return ``block_kwargs`` with the layer's bias for ``num_tokens`` tokens in the mask, if it lacks it."""
    if "resolution" not in block_kwargs:
        return block_kwargs
    known = ("resolution", "interpolate_pos_encoding")
    rest = {name: value for name, value in block_kwargs.items() if name not in known}
    if block.relative_position_bias is not None:
        height, width = block_kwargs["resolution"]
        bias = block.relative_position_bias(
            (height // block.patch_size, width // block.patch_size),
            block_kwargs.get("interpolate_pos_encoding", False),
            dim_size=num_tokens,
        )
        mask = rest.get("attention_mask")
        rest["attention_mask"] = bias if mask is None else bias + mask
    return rest


def carry_bias(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    """Merge the position bias of all tokens, shared or the layer's own."""
    mask = block_kwargs.get("attention_mask")
    shared = block.attention.config.use_shared_relative_position_bias
    if mask is not None and (not shared or mask.shape[0] != 1):  # a user's mask, for each sample
        no_mask(host, block, block_kwargs, state)
    block_kwargs = with_positions(block, block_kwargs, state.num_tokens)
    if "attention_mask" in block_kwargs:
        block_kwargs["attention_mask"] = merge_position_bias(
            host, block_kwargs["attention_mask"], state
        )
    return block_kwargs


ANATOMY = anatomy_of(attend_dino, "attention", "norm1", of("dinov3_vit", "DINOv3ViTAttention"))

DINOV3 = Spec(
    family="transformers DINOv3",
    blocks=of("dinov3_vit", "DINOv3ViTLayer"),
    towers=dict.fromkeys(of("dinov3_vit", "DINOv3ViTEncoder"), "layer"),
    children={
        "norm1": LAYER_NORM,
        "attention": of("dinov3_vit", "DINOv3ViTAttention"),
        "layer_scale1": of("dinov3_vit", "DINOv3ViTLayerScale"),
        "drop_path": (*IDENTITY, *of("dinov3_vit", "Dinov3ViTDropPath", "DINOv3ViTDropPath")),
        "norm2": LAYER_NORM,
        "mlp": of("dinov3_vit", "DINOv3ViTMLP", "DINOv3ViTGatedMLP"),
        "layer_scale2": of("dinov3_vit", "DINOv3ViTLayerScale"),
    },
    attend=attend_dino,
    feed=feed_dino,
    key="attention.k_proj",
    heads=heads_of_dinov3,
    prefix=class_and_registers,
    arguments=("attention_mask", "position_embeddings", *MASKED[1:]),
    accepts={"is_causal": False},
    carry=carry_tables,
    dense=hidden_states_wanted,
    hooked=hooked_by_others,
    patches="embeddings.patch_embeddings",
    anatomy=ANATOMY,
    trim=trim_of(
        ANATOMY,
        towers=of("dinov3_vit", "DINOv3ViTEncoder"),
        around=of("dinov3_vit", "DINOv3ViTModel"),
    ),
    notes="rotary tables are averaged over merged patches",
)

BEIT = Spec(
    family="transformers BEiT",
    blocks=of("beit", "BeitLayer"),
    towers=dict.fromkeys(of("beit", "BeitModel"), "layers"),
    children={
        "attention": of("beit", "BeitAttention"),
        "layernorm_before": LAYER_NORM,
        "layernorm_after": LAYER_NORM,
        "mlp": of("beit", "BeitMLP"),
        "dropout": DROPOUT,
        "drop_path": (*IDENTITY, *of("beit", "BeitDropPath")),
        "relative_position_bias": of("beit", "BeitRelativePositionBias"),
    },
    tensors=("lambda_1", "lambda_2"),
    attend=attend_beit,
    feed=feed_beit,
    key="attention.k_proj",
    heads=heads_vit,
    prefix=one_prefix_token,
    arguments=("attention_mask", "interpolate_pos_encoding", "resolution", *MASKED[1:]),
    accepts={"is_causal": False},
    carry=carry_bias,
    dense=hidden_states_wanted,
    hooked=hooked_by_others,
    patches="embeddings.patch_embeddings",
    why_restore=where_pooled,
    notes="position biases are averaged over merged tokens, as large as the attention scores",
)

SPECS = (DINOV3, BEIT)
