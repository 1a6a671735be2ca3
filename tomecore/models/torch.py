"""A plain pre-norm vision transformer in torch, in timm's names.

It exists so that the demo, the parity tests and a user without timm have a model to patch. Names,
order of operations and child modules follow timm's ``VisionTransformer``: its state dicts load
strictly, and code that adapts timm's blocks adapts these too (hence the identities ``ls1``, ``q_norm``
and so on, which do nothing here). It imports torch, and from this package only ``tomecore.models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomecore.models._arguments import check_architecture
from tomecore.models._torch_weights import load_weights

__all__ = ["Attention", "Block", "Mlp", "PatchEmbed", "VisionTransformer", "load_weights"]


class DropPath(nn.Module):
    """Stochastic depth, which drops the residual branch of whole samples in training."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class PatchEmbed(nn.Module):
    """Patch embedding, from images (B, in_chans, H, W) to tokens (B, N, embed_dim)."""

    def __init__(
        self, img_size: tuple[int, int], patch_size: tuple[int, int], in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid_size = (img_size[0] // patch_size[0], img_size[1] // patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from images (B, in_chans, H, W)."""
        if tuple(x.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images are {tuple(x.shape[-2:])} pixels, the model takes {self.img_size}: "
                "resize them, or build the model with that img_size"
            )
        y: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return y


class Attention(nn.Module):
    """Multi-head self-attention on torch's fused kernel."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Compute attention.

        Args:
            x: Tokens (B, N, C).
            attn_mask: Floating bias added to the scores, broadcastable to (B, H, N, N), in the
                dtype of ``x``; or a boolean mask, True where attention is allowed.

        Returns:
            Tokens (B, N, C).
        """
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask, dropout_p=dropout
        )
        y: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, c)))
        return y


class Mlp(nn.Module):
    """Two linear layers with a GELU between: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from tokens (B, N, C)."""
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each on a residual branch."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.ls1 = nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Compute tokens (B, N, C) from tokens (B, N, C), with the mask of :meth:`Attention.forward`."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
        y: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """Plain vision transformer, with timm's parameter names and numbers.

    Args:
        img_size: Height and width in pixels, one int for both.
        patch_size: The same for a patch; at most ``img_size``.
        in_chans: Channels of an image.
        num_classes: Outputs of the head; 0 for no head.
        embed_dim: Channels of a token, a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLP, as a multiple of ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        class_token: Whether a class token comes first.
        distilled: Whether a distillation token, with its own head, follows the class token.
        global_pool: "token" reads the class token, "avg" the mean of the patch tokens (then, as in
            timm, the last norm comes after pooling and is called ``fc_norm``).
        norm_eps: Epsilon of every LayerNorm.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0; in [0, 1).

    Raises:
        ValueError: An argument is out of range, or two do not fit each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        class_token: bool = True,
        distilled: bool = False,
        global_pool: str = "token",
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        image, patch = check_architecture(
            num_classes=num_classes,
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            class_token=class_token,
            distilled=distilled,
            global_pool=global_pool,
        )

        self.num_classes = num_classes
        self.num_features = self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.num_prefix_tokens = int(class_token) + int(distilled)
        self.distilled_training = False
        self.patch_embed = PatchEmbed(image, patch, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, embed_dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if distilled else None
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.Sequential(
            *(Block(embed_dim, num_heads, mlp_ratio, qkv_bias, p, norm_eps) for p in rates)
        )
        norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        average = global_pool == "avg"
        self.norm = nn.Identity() if average else norm
        self.fc_norm = norm if average else nn.Identity()
        self.head = _head(embed_dim, num_classes)
        self.head_dist = _head(embed_dim, num_classes) if distilled else None
        self._init_weights()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VisionTransformer:
        """Build from arguments in neutral names (here: the constructor's own)."""
        return cls(**config)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute tokens (B, prefix + patches, embed_dim) from images (B, in_chans, H, W)."""
        x = self.patch_embed(x)
        prefix = [t for t in (self.cls_token, self.dist_token) if t is not None]
        x = torch.cat([t.expand(x.shape[0], -1, -1) for t in prefix] + [x], dim=1)
        y: Tensor = self.norm(self.blocks(x + self.pos_embed))
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pool and classify.

        Args:
            x: Tokens (B, N, embed_dim) from :meth:`forward_features`.
            pre_logits: Stop before the head and return the pooled features (B, embed_dim).

        Returns:
            Logits (B, num_classes). Distilled: the mean of both heads; while training with
            ``distilled_training`` set, the pair of them.
        """
        if self.head_dist is not None:
            token, distilled = x[:, 0], x[:, 1]
            if not pre_logits:
                token, distilled = self.head(token), self.head_dist(distilled)
                if self.distilled_training and self.training:
                    return token, distilled
            return (token + distilled) / 2
        average = self.global_pool == "avg"
        x = x[:, self.num_prefix_tokens :].mean(dim=1) if average else x[:, 0]
        x = self.fc_norm(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits from images (B, in_chans, H, W); see :meth:`forward_head`."""
        return self.forward_head(self.forward_features(x))


def _head(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()
