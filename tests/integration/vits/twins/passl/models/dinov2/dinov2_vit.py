"""PASSL's DINOv2: LayerScale, one drop path for both halves, tokens in a dictionary in training."""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.nn import functional as F

from vits.twins.passl.models.vision_transformer import Attention, DropPath, Mlp, PatchEmbed


class LayerScale(nn.Layer):
    def __init__(self, dim):
        super().__init__()
        self.inplace = False
        self.gamma = self.create_parameter([dim])

    def forward(self, x):
        return x * self.gamma


class SwiGLUFFN(nn.Layer):
    def __init__(self, in_features, hidden_features):
        super().__init__()
        self.w12 = nn.Linear(in_features, 2 * hidden_features)
        self.w3 = nn.Linear(hidden_features, in_features)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, axis=-1)
        return self.w3(F.silu(gate) * value)


class SwiGLUFFNFused(SwiGLUFFN):
    def __init__(self, in_features, hidden_features):
        super().__init__(in_features, (int(hidden_features * 2 / 3) + 7) // 8 * 8)


class Block(nn.Layer):
    def __init__(self, dim, num_heads, drop_path, ffn_layer, layer_scale):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, epsilon=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, epsilon=1e-6)
        self.mlp = ffn_layer(dim, dim * 4)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.sample_drop_ratio = drop_path

    def forward(self, x):
        attended = self.ls1(self.attn(self.norm1(x)))
        if self.training and self.sample_drop_ratio > 0.1:
            raise TypeError("PASSL calls paddle.index_add_ with arguments it does not have")
        x = x + (self.drop_path1(attended) if self.training else attended)
        fed = self.ls2(self.mlp(self.norm2(x)))
        return x + (self.drop_path1(fed) if self.training else fed)


class DINOv2VisionTransformer(nn.Layer):
    def __init__(
        self,
        img_size,
        patch_size,
        embed_dim,
        depth,
        num_heads,
        ffn_layer="mlp",
        drop_path_rate=0.0,
        layer_scale=True,
    ):
        super().__init__()
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        shape = [1, 1 + self.patch_embed.num_patches, embed_dim]
        self.pos_embed = self.create_parameter(shape)
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        ffn = {"mlp": Mlp, "swiglu": SwiGLUFFNFused}[ffn_layer]
        self.blocks = nn.LayerList(
            [Block(embed_dim, num_heads, p, ffn, layer_scale) for p in rates]
        )
        self.norm = nn.LayerNorm(embed_dim, epsilon=1e-6)
        self.head = nn.Identity()
        self.mask_token = self.create_parameter([1, embed_dim])

    def prepare_tokens_with_masks(self, x, masks=None):
        x = self.patch_embed(x)
        if masks is not None:
            x = paddle.where(masks.unsqueeze(-1), self.mask_token.unsqueeze(0), x)
        front = self.cls_token.expand([paddle.shape(x)[0], -1, -1])
        return paddle.concat([front, x], axis=1) + self.pos_embed

    def forward_features(self, x, masks=None):
        x = self.prepare_tokens_with_masks(x, masks)
        for blk in self.blocks:
            x = blk(x)
        normed = self.norm(x)
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_patchtokens": normed[:, 1:],
            "x_prenorm": x,
            "masks": masks,
        }

    def get_intermediate_layers(self, x, n=1, reshape=False):
        x, outputs, side = self.prepare_tokens_with_masks(x), [], x.shape[2] // self.patch_size
        for blk in self.blocks:
            x = blk(x)
            outputs.append(self.norm(x)[:, 1:])
        if reshape:
            outputs = [y.reshape([0, side, side, -1]).transpose([0, 3, 1, 2]) for y in outputs]
        return tuple(outputs[-n:])

    def forward(self, x):
        features = self.forward_features(x)
        return features if self.training else self.head(features["x_norm_clstoken"])
