"""PASSL's DeiT: its own tower, which is not a subclass of VisionTransformer, and its distilled kind."""

from __future__ import annotations

from paddle import nn

from vits.twins.passl.models.vision_transformer import VisionTransformer as Plain


class DeitVisionTransformer(nn.Layer):
    def __init__(self, **sizes):
        super().__init__()
        for name, layer in Plain(**sizes).named_children():
            setattr(self, name, layer)
        width = sizes["embed_dim"]
        fronts = sizes.get("fronts", 1)
        shape = [1, self.patch_embed.num_patches + fronts, width]
        self.pos_embed = self.create_parameter(shape)
        self.cls_token = self.create_parameter([1, 1, width])

    tokens = Plain.tokens
    forward_features = Plain.forward_features
    forward = Plain.forward


class DistilledVisionTransformer(DeitVisionTransformer):
    def __init__(self, class_num, embed_dim, **sizes):
        super().__init__(class_num=class_num, embed_dim=embed_dim, fronts=2, **sizes)
        self.dist_token = self.create_parameter([1, 1, embed_dim])
        self.head_dist = nn.Linear(embed_dim, class_num)

    def forward_features(self, x):
        x = self.norm(self.tokens(x))
        return x[:, 0], x[:, 1]

    def forward(self, x):
        x, x_dist = self.forward_features(x)
        return (self.head(x) + self.head_dist(x_dist)) / 2
