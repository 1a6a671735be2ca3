"""The ViT of Paddle's model libraries: PLSC, PaddleClas, PASSL and ppim, and tomecore's own.

Their source is the same: fused qkv, one ``drop_path`` for both halves, a class token, perhaps a distillation
token, no LayerScale. Their attention accepts no bias, so the attention half is ours: the framework's fused
kernel between the module's own projections and dropouts. Classes are matched by
the end of their qualified name, because PaddleClas is distributed under two module paths.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.spec import Anatomy, Kwargs, Spec
from tomecore.adapters.families.attention import fused_qkv, trim_with
from tomecore.adapters.families.paddle.common import IDENTITY, NORMS, attend_with_dropout
from tomecore.backends import Array, Bias, Tokens

__all__ = ["FRAMEWORK", "SPECS", "VIT"]

FRAMEWORK = "paddle"

_LIBRARIES = (
    "plsc.models.vision_transformer",
    "passl.models.vision_transformer",
    "ppcls.arch.backbone.model_zoo.vision_transformer",
    "ppim.models.vit",
    "tomecore.models.paddle",
)


def _names(cls: str) -> tuple[str, ...]:
    return tuple(f".{module}.{cls}" for module in _LIBRARIES)


#: towers with the same blocks that do not derive from VisionTransformer
_OTHER_TOWERS = tuple(
    f".{library}.models.{name}"
    for library in ("plsc", "passl")
    for name in ("deit.DeitVisionTransformer", "mae.MaskedAutoencoderViT")
)
_DROP_PATHS = (
    *_names("DropPath"),
    *_names("Identity"),
    IDENTITY,
    ".ppim.models.common.Identity",
    ".ppim.models.common.DropPath",
    ".plsc.nn.stochastic_depth.DropPath",
)


def attend(
    host: LayerHost,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int | None = None,
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v, scale = fused_qkv(host, attn, block.norm1(x), block_kwargs, rows)
    y = attend_with_dropout(host, attn, (q, k, v), bias, attn.attn_drop, scale)
    x = x if rows is None else x[:, :rows]
    return x + block.drop_path(attn.proj_drop(attn.proj(y))), k


def feed(block: Any, x: Tokens) -> Tokens:
    return x + block.drop_path(block.mlp(block.norm2(x)))


def prefix(tower: Any) -> int:
    """Return the number of class and distillation tokens."""
    return sum(getattr(tower, name, None) is not None for name in ("cls_token", "dist_token"))


def why_restore(tower: Any) -> str | None:
    if getattr(tower, "global_pool", "token") not in (False, "token", ""):
        return (
            f"the model pools over tokens (global_pool={tower.global_pool!r}), and would count a "
            "merged token once instead of as often as its size"
        )
    if hasattr(tower, "decoder_blocks"):
        return "the model has a decoder, which puts its tokens back by position"
    return None


def why_not_rows(tower: Any) -> str | None:
    """Return why more than the prefix tokens are read, or None."""
    if why_restore(tower) is None:
        return None
    return f"the model pools over all tokens (global_pool={getattr(tower, 'global_pool', None)!r})"


#: towers in which only prefix tokens are read after the blocks, unless they pool; of libraries whose whole
#: models are known
_READ = (
    *(name for name in _names("VisionTransformer") if not name.startswith((".plsc.", ".passl."))),
    ".ppcls.arch.backbone.model_zoo.distilled_vision_transformer.DistilledVisionTransformer",
    ".ppim.models.deit.DistilledVisionTransformer",
)

ANATOMY = Anatomy(
    of=attend,
    attention="attn",
    norm="norm1",
    qkv=fused_qkv,
    classes=dict.fromkeys(_names("Attention"), ("qkv", "attn_drop", "proj", "proj_drop")),
)

VIT = Spec(
    family="PLSC / PaddleClas / ppim VisionTransformer",
    blocks=_names("Block"),
    towers=dict.fromkeys((*_names("VisionTransformer"), *_OTHER_TOWERS), "blocks"),
    children={
        "norm1": NORMS,
        "attn": _names("Attention"),
        "drop_path": _DROP_PATHS,
        "norm2": NORMS,
        "mlp": _names("Mlp"),
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    why_restore=why_restore,
    bypasses=("attn",),
    anatomy=ANATOMY,
    trim=trim_with(
        ANATOMY,
        towers=_READ,
        keys={"attn.qkv": 2 / 3},
        why_not=why_not_rows,
    ),
    notes=(
        "DeiT, distilled DeiT, MAE with its decoder or finetuned; PLSC and PASSL import on Paddle 3 once "
        "`paddle.fluid` is aliased: `benchmarks/plsc_sources.py` does so and checks their own classes; "
        "tests use twins; `tomecore.models.paddle` has their parameter names"
    ),
)

SPECS = (VIT,)
