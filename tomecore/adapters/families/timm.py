"""timm's VisionTransformer with its standard Block, and tomecore's own ViT, which has the same anatomy.

Covers LayerScale, query-key norm, attention norm and gates, drop path, distillation and register
tokens, and all pools: the attention is timm's own, called as a module, with the key tapped behind
``k_norm`` and the bias given as ``attn_mask``.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters._config import Config
from tomecore.adapters._spec import Spec
from tomecore.adapters._swap import Swapped
from tomecore.backends import Array

__all__ = ["VIT"]

_NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "torch.nn.modules.normalization.RMSNorm",
    "timm.layers.norm.LayerNorm",
    "timm.layers.norm.LayerNormFp32",
    "timm.layers.norm.RmsNorm",
    "timm.layers.norm.RmsNormFp32",
    "timm.layers.norm.SimpleNorm",
    "timm.layers.norm.SimpleNormFp32",
    "torch.nn.modules.linear.Identity",
)
_SCALES = (
    "torch.nn.modules.linear.Identity",
    "timm.layers.layer_scale.LayerScale",
    "timm.models.vision_transformer.LayerScale",
)
_DROP_PATHS = (
    "torch.nn.modules.linear.Identity",
    "timm.layers.drop.DropPath",
    "tomecore.models.torch.DropPath",
)


def attend(host: Any, block: Any, x: Array, bias: Array | None) -> Array:
    y = block.attn(block.norm1(x), attn_mask=bias)
    return block.drop_path1(block.ls1(y))


def feed(block: Any, x: Array) -> Array:
    return block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def prefix(tower: Any) -> int:
    return int(tower.num_prefix_tokens)


def why_restore(tower: Any) -> str | None:
    if getattr(tower, "attn_pool", None) is not None or tower.global_pool not in ("", "token"):
        return (
            f"the model pools over tokens (global_pool={tower.global_pool!r}), and would count a "
            "merged token once instead of as often as its size"
        )
    return None


class Dense(Swapped):
    """Mixin of the tower: readers of intermediate layers get all tokens of every layer."""

    _tome: Config

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        config = self._tome
        tracing = config.host.tracing()
        config.dense.set(True, tracing)
        try:
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]
        finally:
            config.dense.set(None, tracing)


VIT = Spec(
    family="timm VisionTransformer",
    blocks=("timm.models.vision_transformer.Block", "tomecore.models.torch.Block"),
    towers=(
        "timm.models.vision_transformer.VisionTransformer",
        "tomecore.models.torch.VisionTransformer",
    ),
    layers="blocks",
    children={
        "norm1": _NORMS,
        "attn": ("timm.layers.attention.Attention", "tomecore.models.torch.Attention"),
        "ls1": _SCALES,
        "drop_path1": _DROP_PATHS,
        "norm2": _NORMS,
        "mlp": (
            "timm.layers.mlp.Mlp",
            "timm.layers.mlp.GluMlp",
            "timm.layers.mlp.SwiGLU",
            "tomecore.models.torch.Mlp",
        ),
        "ls2": _SCALES,
        "drop_path2": _DROP_PATHS,
    },
    attend=attend,
    feed=feed,
    key="attn.k_norm",
    prefix=prefix,
    accepts={"is_causal": False},
    why_restore=why_restore,
    tower_mixin=Dense,
)
