"""The ViT of Paddle's model libraries: PLSC, PaddleClas, PASSL and ppim, and tomecore's own.

They share one text: fused qkv, one ``drop_path`` for both halves, class and perhaps distillation
token, no LayerScale. Their attention takes no bias, so the attention half here is ours, around the
framework's fused kernel; the module's own projections and dropouts are used. Classes are matched by
the end of their qualified name, because PaddleClas is distributed under two module paths.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters._spec import Spec
from tomecore.backends import Array
from tomecore.errors import UnsupportedModelError

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


_DROP_PATHS = (
    *_names("DropPath"),
    *_names("Identity"),
    ".paddle.nn.layer.common.Identity",
    ".ppim.models.common.Identity",
    ".ppim.models.common.DropPath",
    ".plsc.nn.stochastic_depth.DropPath",
)
_NORMS = (".paddle.nn.layer.norm.LayerNorm",)


def attend(
    host: Any, block: Any, x: Array, bias: Array | None, given: dict[str, Any]
) -> tuple[Array, Array]:
    attn = block.attn
    if host.hooked(attn):
        raise UnsupportedModelError(
            "a forward hook was put on a patched block's attention, which the merging forward does "
            "not call; hook the modules inside it (qkv, proj), or remove_patch first"
        )
    y = block.norm1(x)
    heads, tokens, width = attn.num_heads, y.shape[1], y.shape[2]
    qkv = attn.qkv(y).reshape([-1, tokens, 3, heads, width // heads])
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    y = host.attention(
        q, k, v, bias, dropout=attn.attn_drop.p if attn.training else 0.0, scale=attn.scale
    )
    y = attn.proj_drop(attn.proj(y.reshape([-1, tokens, width])))
    return x + block.drop_path(y), k


def feed(block: Any, x: Array) -> Array:
    return x + block.drop_path(block.mlp(block.norm2(x)))


def prefix(tower: Any) -> int:
    """The class token, the distillation token, or none."""
    return sum(getattr(tower, name, None) is not None for name in ("cls_token", "dist_token"))


def why_restore(tower: Any) -> str | None:
    if getattr(tower, "global_pool", "token") not in (False, "token", ""):
        return (
            f"the model pools over tokens (global_pool={tower.global_pool!r}), and would count a "
            "merged token once instead of as often as its size"
        )
    return None


VIT = Spec(
    family="PLSC / PaddleClas / ppim VisionTransformer",
    blocks=_names("Block"),
    towers=dict.fromkeys(_names("VisionTransformer"), "blocks"),
    children={
        "norm1": _NORMS,
        "attn": _names("Attention"),
        "drop_path": _DROP_PATHS,
        "norm2": _NORMS,
        "mlp": _names("Mlp"),
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    why_restore=why_restore,
    bypasses=("attn",),
    notes=(
        "DeiT distilled too; PASSL by structure; PLSC and PASSL do not import on Paddle 3, so "
        "tests run on the same network in `tomecore.models.paddle`; ours has PLSC's parameter "
        "names"
    ),
)

SPECS = (VIT,)
