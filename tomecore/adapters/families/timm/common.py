"""Code that timm's families share: names of norms and MLPs, MLP halves, pools and masks.

While tokens merge, a mask may only say which tokens are padding. To check that, the values of a float
mask, or of a mask of pairs, are read once in each forward pass, which waits for the device and does not
compile into one graph. A bool mask of keys (B, 1, 1, N) needs no check.
"""

from __future__ import annotations

from typing import Any, Protocol

from tomecore.adapters.families.attention import Layer
from tomecore.adapters.families.classes import IDENTITY
from tomecore.adapters.families.classes import NORMS as _NORMS_OF_TORCH
from tomecore.backends import Array, Mask, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = [
    "ARGUMENTS",
    "ATTENTIONS",
    "DROP_PATHS",
    "MLPS",
    "NORMS",
    "SCALES",
    "TOWERS",
    "feed",
    "feed_gamma",
    "feed_post_norm",
    "pools_over_tokens",
    "prefix",
    "real_tokens",
]

NORMS = (
    *_NORMS_OF_TORCH,
    "timm.layers.norm.LayerNorm",
    "timm.layers.norm.LayerNormFp32",
    "timm.layers.norm.RmsNorm",
    "timm.layers.norm.RmsNormFp32",
    "timm.layers.norm.SimpleNorm",
    "timm.layers.norm.SimpleNormFp32",
)
SCALES = (
    *IDENTITY,
    "timm.layers.layer_scale.LayerScale",
    "timm.models.vision_transformer.LayerScale",
    "timm.models.vision_transformer_relpos.LayerScale",
)
DROP_PATHS = (*IDENTITY, "timm.layers.drop.DropPath", "tomecore.models.torch.DropPath")
ATTENTIONS = ("timm.layers.attention.Attention", "timm.layers.diff_attention.DiffAttention")
MLPS = (
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.GluMlp",
    "timm.layers.mlp.SwiGLU",
    "timm.models.vitamin.GeGluMlp",
)
TOWERS = {
    "timm.models.vision_transformer.VisionTransformer": "blocks",
    "timm.models.naflexvit.NaFlexVit": "blocks",
}
#: parameters of the forward of the blocks of these towers
ARGUMENTS = ("attn_mask", "is_causal")

#: masks of floats: a score at or below this has the effect of -inf in every precision
_MASKED = -1e4


class MlpHalf(Protocol):
    """The modules of the MLP half of a block."""

    norm2: Layer
    mlp: Layer
    drop_path2: Layer


class ScaledMlpHalf(MlpHalf, Protocol):
    """The same with a LayerScale."""

    ls2: Layer


def feed(block: ScaledMlpHalf, x: Tokens) -> Tokens:
    """Compute the MLP half of timm's Block."""
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def feed_gamma(block: MlpHalf, x: Tokens) -> Tokens:
    """Compute the MLP half of blocks whose LayerScale is a parameter ``gamma_2``, or missing."""
    y = block.mlp(block.norm2(x))
    gamma = getattr(block, "gamma_2", None)
    return x + block.drop_path2(y if gamma is None else gamma * y)


def feed_post_norm(block: MlpHalf, x: Tokens) -> Tokens:
    """Compute the MLP half of blocks that norm after the MLP."""
    return x + block.drop_path2(block.norm2(block.mlp(x)))


def prefix(tower: Any) -> int:
    """Return the number of class, distillation and register tokens."""
    return int(tower.num_prefix_tokens)


def pools_over_tokens(tower: Any) -> str | None:
    """Return why the shorter sequence would be pooled wrongly, or None."""
    if getattr(tower, "attn_pool", None) is not None or tower.global_pool not in ("", "token"):
        return (
            f"the model pools over tokens (global_pool={tower.global_pool!r}), and would count a "
            "merged token once instead of as often as its size"
        )
    return None


def real_tokens(mask: Array) -> Mask:
    """Return which tokens are real, (B or 1, N) bool, False for padding.

    Masks of keys (B or 1, 1, 1, N) are supported, and masks of pairs (B or 1, 1, N, N) in which the
    pairs of two real tokens are allowed, and no others (NaFlexVit).

    Raises:
        UnsupportedModelError: the mask describes more than padding.
    """
    shape = tuple(mask.shape)
    is_bool = str(mask.dtype).endswith("bool")
    ok = len(shape) == 4 and shape[1] == 1 and shape[2] in (1, shape[3])
    if ok:
        allowed = mask if is_bool else mask > _MASKED
        if shape[2] == 1:
            real = allowed[:, 0, 0]
        else:
            real = allowed[:, 0].diagonal(dim1=1, dim2=2)
            pairs = real[:, None, :] & real[:, :, None]
            ok = bool((allowed[:, 0] == pairs).all())
    if ok and not is_bool:
        ok = bool(((mask == 0) | ~allowed).all())
    if not ok:
        raise UnsupportedModelError(
            f"attn_mask of shape {shape} and {mask.dtype} describes single pairs of tokens, or weighs "
            "them, and merged tokens have no such pairs. While tokens merge, a mask can only mark "
            "padding: pass a bool mask of shape (batch, 1, 1, tokens), True for real tokens, or set "
            "model.r = 0 for such calls."
        )
    return real
