"""PASSL's plain ViT; PLSC's is the same text in another package."""

from __future__ import annotations

import paddle
from paddle import nn
from paddle.nn import functional as F


class DropPath(nn.Layer):
    def __init__(self, drop_prob=None):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1 - self.drop_prob
        return x / keep * paddle.floor(paddle.rand([x.shape[0], 1, 1], dtype=x.dtype) + keep)


class Mlp(nn.Layer):
    def __init__(
        self, in_features, hidden_features=None, out_features=None, act_layer=nn.GELU, drop=0.0
    ):
        super().__init__()
        hidden = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Attention(nn.Layer):
    def __init__(
        self, dim, num_heads=8, qkv_bias=False, qk_scale=None, attn_drop=0.0, proj_drop=0.0
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias_attr=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x):
        tokens, width = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape([-1, tokens, 3, self.num_heads, width // self.num_heads])
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
        weights = self.attn_drop(F.softmax(q @ k.transpose([0, 1, 3, 2]) * self.scale, axis=-1))
        x = (weights @ v).transpose([0, 2, 1, 3]).reshape([-1, tokens, width])
        return self.proj_drop(self.proj(x))


class Block(nn.Layer):
    def __init__(
        self, dim, num_heads, mlp_ratio=4.0, qkv_bias=False, drop_path=0.0, norm_layer=nn.LayerNorm
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Layer):
    def __init__(self, img_size, patch_size, in_chans, embed_dim):
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] ** 2
        self.proj = nn.Conv2D(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.Identity()

    def forward(self, x):
        return self.norm(self.proj(x).flatten(2).transpose([0, 2, 1]))


class VisionTransformer(nn.Layer):
    def __init__(
        self,
        img_size=224,
        patch_size=16,
        class_num=1000,
        embed_dim=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=False,
        drop_path_rate=0.0,
        norm_layer=nn.LayerNorm,
        fronts=1,
    ):
        super().__init__()
        self.num_features = self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        shape = [1, self.patch_embed.num_patches + fronts, embed_dim]
        self.pos_embed = self.create_parameter(shape)
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        self.pos_drop = nn.Dropout(0.0)
        self.blocks = nn.LayerList(
            [
                Block(dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
                      drop_path=drop_path_rate * i / max(depth - 1, 1), norm_layer=norm_layer)
                for i in range(depth)
            ]
        )  # fmt: skip
        self.norm = norm_layer(embed_dim)
        self.head = nn.Linear(embed_dim, class_num)

    def tokens(self, x):
        x = self.patch_embed(x)
        fronts = [self.cls_token.expand([paddle.shape(x)[0], -1, -1])]
        if hasattr(self, "dist_token"):
            fronts.append(self.dist_token.expand([paddle.shape(x)[0], -1, -1]))
        x = self.pos_drop(paddle.concat([*fronts, x], axis=1) + self.pos_embed)
        for blk in self.blocks:
            x = blk(x)
        return x

    def forward_features(self, x):
        return self.norm(self.tokens(x))[:, 0]

    def forward(self, x):
        return self.head(self.forward_features(x))
