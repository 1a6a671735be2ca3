"""``paddle.nn.TransformerEncoderLayer``, pre-norm and post-norm, in vision towers: PaddleNLP's CLIP.

Text encoders and decoders have layers of the same class, so only the towers named here are patched.
For your own tower, pass this spec with your class in ``towers`` to ``register`` (tests show it).
The attention half is the framework's fused kernel between the module's own projections. Importing PaddleNLP
replaces the layer's forward in the whole process with one that can return attention maps; tomecore supports
them only with r = 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.paddle.common import (
    NORMS,
    HiddenStates,
    attend_projected,
    one_prefix_token,
)
from tomecore.backends import Array, Bias, Tokens

__all__ = ["ENCODER_LAYER", "FRAMEWORK", "SPECS"]

FRAMEWORK = "paddle"

_COMMON = ".paddle.nn.layer.common"
_UNREAD = (
    "layers have a forward of their own, which tomecore has no spec for yet; register() takes one"
)
_CLIP = ".paddlenlp.transformers.clip.modeling"


def attend(
    host: LayerHost, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.self_attn
    y = block.norm1(x) if block.normalize_before else x
    y, k = attend_projected(host, attn, y, bias, attn.head_dim**-0.5)
    x = x + block.dropout1(y)
    return (x if block.normalize_before else block.norm1(x)), k


def feed(block: Any, x: Tokens) -> Tokens:
    y = block.norm2(x) if block.normalize_before else x
    y = block.linear2(block.dropout(block.activation(block.linear1(y))))
    x = x + block.dropout2(y)
    return x if block.normalize_before else block.norm2(x)


ENCODER_LAYER = Spec(
    family="paddle.nn.TransformerEncoderLayer",
    blocks=(".paddle.nn.layer.transformer.TransformerEncoderLayer",),
    towers={},
    children={
        "self_attn": (".paddle.nn.layer.transformer.MultiHeadAttention",),
        "linear1": (f"{_COMMON}.Linear",),
        "dropout": (f"{_COMMON}.Dropout",),
        "linear2": (f"{_COMMON}.Linear",),
        "norm1": NORMS,
        "norm2": NORMS,
        "dropout1": (f"{_COMMON}.Dropout",),
        "dropout2": (f"{_COMMON}.Dropout",),
        "activation": ("*",),
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=one_prefix_token,
    arguments=("src_mask", "cache", "output_attentions"),
    accepts={"output_attentions": False},
    bypasses=("self_attn",),
    replacers=("paddlenlp",),
)

CLIP = replace(
    ENCODER_LAYER,
    family="PaddleNLP CLIP",
    towers={f"{_CLIP}.CLIPVisionTransformer": "transformer.layers"},
    patches="conv1",
    tower_mixin=HiddenStates,
    refused={
        "paddlenlp.transformers.blip.modeling.BlipVisionModel": _UNREAD,
    },
    notes=(
        "the vision tower, also of Chinese CLIP and ERNIE-ViL; your own towers by register(); PaddleNLP "
        "cannot be imported with today's huggingface_hub: tested on a twin around Paddle's own layers"
    ),
)

SPECS = (CLIP,)
