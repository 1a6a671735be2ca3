"""PASSL's DINO: attention that returns its map, and a block that may return nothing else."""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.nn import functional as F

from vits.twins.passl.models.vision_transformer import DropPath, Mlp, PatchEmbed


class Attention(nn.Layer):
    def __init__(self, dim, num_heads, qkv_bias):
        super().__init__()
        self.num_heads = num_heads
        self.attn_head_size = dim // num_heads
        self.all_head_size = self.attn_head_size * num_heads
        self.scales = self.attn_head_size**-0.5
        self.qkv = nn.Linear(dim, self.all_head_size * 3, bias_attr=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_dropout = nn.Dropout(0.0)
        self.proj_dropout = nn.Dropout(0.0)

    def split(self, x):
        return x.reshape([0, 0, self.num_heads, self.attn_head_size]).transpose([0, 2, 1, 3])

    def forward(self, x):
        q, k, v = [self.split(part) for part in self.qkv(x).chunk(3, axis=-1)]
        weights = F.softmax(paddle.matmul(q, k, transpose_y=True) * self.scales, axis=-1)
        weights = self.attn_dropout(weights)
        z = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
        z = z.reshape([0, 0, self.all_head_size])
        return self.proj_dropout(self.proj(z)), weights


class Block(nn.Layer):
    def __init__(self, dim, num_heads, qkv_bias, drop_path):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * 4)

    def forward(self, x, return_attention=False):
        y, weights = self.attn(self.norm1(x))
        if return_attention:
            return weights
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DINOVisionTransformer(nn.Layer):
    def __init__(
        self, img_size, patch_size, embed_dim, depth, num_heads, qkv_bias=True, drop_path_rate=0.0
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size[0], patch_size, 3, embed_dim)
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        shape = [1, 1 + self.patch_embed.num_patches, embed_dim]
        self.pos_embed = self.create_parameter(shape)
        self.pos_drop = nn.Dropout(0.0)
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, qkv_bias, p) for p in rates])
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Identity()

    def prepare_tokens(self, x):
        x = self.patch_embed(x)
        front = self.cls_token.expand([paddle.shape(x)[0], -1, -1])
        return self.pos_drop(paddle.concat([front, x], axis=1) + self.pos_embed)

    def forward(self, x):
        x = self.prepare_tokens(x)
        for blk in self.blocks:
            x = blk(x)
        return self.norm(x)[:, 0]

    def get_last_selfattention(self, x):
        x = self.prepare_tokens(x)
        for blk in self.blocks[:-1]:
            x = blk(x)
        return self.blocks[-1](x, return_attention=True)

    def get_intermediate_layers(self, x, n=1):
        x, output = self.prepare_tokens(x), []
        for blk in self.blocks:
            x = blk(x)
            output.append(self.norm(x))
        return output[-n:]
