"""The CLIP of ppdiffusers: a vision tower as in earlier transformers, whose layers return tuples.

The attention half is the framework's fused kernel between the module's own projections to q, k and v and
back. Only the vision tower is patched; the text tower has layers of the same class.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.halves import feed_layer_norm2
from tomecore.adapters.families.paddle.common import (
    NORMS,
    HiddenStates,
    attend_projected,
    one_prefix_token,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "paddle"

_CLIP = ".ppdiffusers.transformers.clip.modeling"


def attend(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.self_attn
    y, k = attend_projected(host, attn, block.layer_norm1(x), bias, attn.scale)
    return x + y, k


CLIP = Spec(
    family="ppdiffusers CLIP",
    blocks=(f"{_CLIP}.CLIPEncoderLayer",),
    towers={f"{_CLIP}.CLIPVisionTransformer": "encoder.layers"},
    children={
        "self_attn": (f"{_CLIP}.CLIPAttention",),
        "layer_norm1": NORMS,
        "mlp": (f"{_CLIP}.CLIPMLP",),
        "layer_norm2": NORMS,
    },
    attend=attend,
    feed=feed_layer_norm2,
    key_heads=2,
    prefix=one_prefix_token,
    patches="embeddings.patch_embedding",
    arguments=("attention_mask", "causal_attention_mask", "output_attentions"),
    accepts={"output_attentions": False},
    returns_tuple=True,
    bypasses=("self_attn",),
    tower_mixin=HiddenStates,
    notes=(
        "the vision tower; attention maps only with r = 0; cannot be imported with today's "
        "huggingface_hub: tested on a twin"
    ),
)

SPECS = (CLIP,)
