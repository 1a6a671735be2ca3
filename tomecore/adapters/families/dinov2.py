"""DINOv2 from its own repository and torch.hub, with and without registers.

Its attention accepts no bias, so the attention half is ours: the framework's fused kernel between the
module's own projections. These are refused: blocks in chunks (``block_chunks``, for training
under FSDP), several images in one sequence (lists of crops), and training with a ``drop_path`` above
0.1, where a block drops images and not paths.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec
from tomecore.adapters.families.attention import attend_heads, fused_qkv
from tomecore.adapters.families.classes import IDENTITY, NORMS
from tomecore.adapters.families.readers import IntermediateLayers
from tomecore.backends import Array, Bias, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = ["FRAMEWORK", "SPECS"]

FRAMEWORK = "torch"

_SCALES = ("dinov2.layers.layer_scale.LayerScale", *IDENTITY)
_DROP_PATHS = ("dinov2.layers.drop_path.DropPath", *IDENTITY)


def attend(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> tuple[Tokens, Array]:
    attn = block.attn
    q, k, v, scale = fused_qkv(host, attn, block.norm1(x))
    y = attend_heads(host, (q, k, v), bias, 0.0, scale)
    y = attn.proj_drop(attn.proj(y))
    return x + drop_path(block, block.ls1(y)), k


def feed(block: Any, x: Tokens) -> Tokens:
    return x + drop_path(block, block.ls2(block.mlp(block.norm2(x))))


def drop_path(block: Any, y: Tokens) -> Tokens:
    """Apply the drop path that both halves of the block share."""
    if not block.training:
        return y
    if block.sample_drop_ratio > 0.1:
        raise UnsupportedModelError(
            f"a DINOv2 block in training with drop_path={block.sample_drop_ratio} leaves out whole "
            "images of the batch, which merging does not support. Build the model with drop_path_rate "
            "up to 0.1, or set model.r = 0 in training."
        )
    return block.drop_path1(y)


def prefix(tower: Any) -> int:
    """Return the number of class and register tokens."""
    return 1 + int(getattr(tower, "num_register_tokens", 0))


def refuse(block: Any) -> str | None:
    drop = getattr(block.attn.attn_drop, "p", block.attn.attn_drop)  # a module, later a number
    if drop:
        return f"its attention has attn_drop={drop}, which DINOv2 applies or not by the kernel it finds"
    return None


class Tower(IntermediateLayers):
    """Mixin of the tower: readers of intermediate layers, and a refusal of lists of crops."""

    def forward_features_list(self, *args: Any, **kwargs: Any) -> Any:
        if self._tome.merges_nothing():
            return super().forward_features_list(*args, **kwargs)  # type: ignore[misc]
        raise UnsupportedModelError(
            "a patched DINOv2 was called with a list of images. It would join them into one sequence, in "
            "which merging cannot keep images apart. Call it with one batch at a time, or call "
            "remove_patch first."
        )


VIT = Spec(
    family="DINOv2 (official) DinoVisionTransformer",
    blocks=("dinov2.layers.block.Block", "dinov2.layers.block.NestedTensorBlock"),
    towers={"dinov2.models.vision_transformer.DinoVisionTransformer": "blocks"},
    children={
        "norm1": NORMS,
        "attn": (
            "dinov2.layers.attention.Attention",
            "dinov2.layers.attention.MemEffAttention",
        ),
        "ls1": _SCALES,
        "drop_path1": _DROP_PATHS,
        "norm2": NORMS,
        "mlp": (
            "dinov2.layers.mlp.Mlp",
            "dinov2.layers.swiglu_ffn.SwiGLUFFN",
            "dinov2.layers.swiglu_ffn.SwiGLUFFNFused",
            *IDENTITY,
        ),
        "ls2": _SCALES,
        "drop_path2": _DROP_PATHS,
    },
    attend=attend,
    feed=feed,
    key_heads=2,
    prefix=prefix,
    patches="patch_embed",
    bypasses=("attn",),
    refuse=refuse,
    tower_mixin=Tower,
    notes="one image size at a time (no lists of crops); no block chunks",
)

SPECS = (VIT,)
