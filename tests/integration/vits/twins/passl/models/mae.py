"""PASSL's MAE: the pretraining model with its decoder, and the finetuned one with global pooling."""

from __future__ import annotations

import paddle
from paddle import nn

from vits.twins.passl.models.vision_transformer import Block, PatchEmbed, VisionTransformer


class MAEVisionTransformer(VisionTransformer):
    def __init__(self, global_pool=False, **sizes):
        super().__init__(**sizes)
        self.global_pool = global_pool
        if global_pool:
            self.fc_norm = sizes.get("norm_layer", nn.LayerNorm)(sizes["embed_dim"])
            del self.norm

    def forward_features(self, x):
        x = self.tokens(x)
        if self.global_pool:
            return self.fc_norm(x[:, 1:, :].mean(axis=1))
        return self.norm(x)[:, 0]


class MaskedAutoencoderViT(nn.Layer):
    """Encoder of the patches that are kept, decoder of all. Which are kept is fixed here."""

    def __init__(self, img_size, patch_size, embed_dim, depth, num_heads, decoder_depth=1):
        super().__init__()
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        shape = [1, self.patch_embed.num_patches + 1, embed_dim]
        self.cls_token = self.create_parameter([1, 1, embed_dim])
        self.pos_embed = self.create_parameter(shape)
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, 4, True) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, embed_dim)
        self.mask_token = self.create_parameter([1, 1, embed_dim])
        self.decoder_pos_embed = self.create_parameter(shape)
        self.decoder_blocks = nn.LayerList(
            [Block(embed_dim, num_heads, 4, True) for _ in range(decoder_depth)]
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * 3)

    def forward(self, imgs, mask_ratio=0.75):
        x = self.patch_embed(imgs) + self.pos_embed[:, 1:, :]
        patches = x.shape[1]
        order = paddle.arange(patches) * 5 % patches
        keep = int(patches * (1 - mask_ratio))
        x = paddle.index_select(x, order[:keep], axis=1)
        batch = paddle.shape(x)[0]
        front = (self.cls_token + self.pos_embed[:, :1, :]).expand([batch, -1, -1])
        x = paddle.concat([front, x], axis=1)
        for blk in self.blocks:
            x = blk(x)
        x = self.decoder_embed(self.norm(x))
        masked = self.mask_token.expand([batch, patches - keep, -1])
        rest = paddle.index_select(
            paddle.concat([x[:, 1:, :], masked], axis=1), paddle.argsort(order), axis=1
        )
        x = paddle.concat([x[:, :1, :], rest], axis=1) + self.decoder_pos_embed
        for blk in self.decoder_blocks:
            x = blk(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:, :]
