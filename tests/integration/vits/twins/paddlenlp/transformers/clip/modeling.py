"""PaddleNLP's CLIP: both towers are Paddle's own encoder, whose forward PaddleNLP replaces on import.

Here the replacements are methods of subclasses, and the layers Paddle's own.
"""

from __future__ import annotations

from types import SimpleNamespace

import paddle
from paddle import nn


class Encoder(nn.TransformerEncoder):
    def forward(self, src, src_mask=None, output_attentions=False, output_hidden_states=False):
        states = [src]
        for layer in self.layers:
            src = layer(src, src_mask=src_mask)
            states.append(src)
        return (src, tuple(states)) if output_hidden_states else src


def encoder(width, heads, depth, hidden):
    layer = nn.TransformerEncoderLayer(
        d_model=width,
        nhead=heads,
        dim_feedforward=hidden,
        normalize_before=True,
        dropout=0.0,
        activation="gelu",
        attn_dropout=0.0,
        act_dropout=0.0,
    )
    return Encoder(layer, depth)


class CLIPVisionTransformer(nn.Layer):
    def __init__(self, image_size, patch_size, hidden_size, heads, depth, hidden):
        super().__init__()
        self.config = SimpleNamespace(output_attentions=False, output_hidden_states=False)
        self.class_embedding = self.create_parameter([hidden_size])
        self.conv1 = nn.Conv2D(3, hidden_size, patch_size, stride=patch_size, bias_attr=False)
        self.positional_embedding = nn.Embedding((image_size // patch_size) ** 2 + 1, hidden_size)
        self.ln_pre = nn.LayerNorm(hidden_size)
        self.transformer = encoder(hidden_size, heads, depth, hidden)
        self.ln_post = nn.LayerNorm(hidden_size)

    def forward(
        self,
        pixel_values=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x = self.conv1(pixel_values).flatten(2).transpose([0, 2, 1])
        front = self.class_embedding.unsqueeze([0, 1]).expand([paddle.shape(x)[0], -1, -1])
        x = paddle.concat([front, x], axis=1) + self.positional_embedding.weight
        outputs = self.transformer(self.ln_pre(x), output_hidden_states=output_hidden_states)
        if not output_hidden_states:
            return outputs, self.ln_post(outputs[:, 0])
        return outputs[0], self.ln_post(outputs[0][:, 0]), outputs[1]


class CLIPTextTransformer(nn.Layer):
    def __init__(self, hidden_size, heads, depth, hidden):
        super().__init__()
        self.token_embedding = nn.Embedding(50, hidden_size)
        self.transformer = encoder(hidden_size, heads, depth, hidden)
        self.ln_final = nn.LayerNorm(hidden_size)

    def forward(self, input_ids):
        x = self.token_embedding(input_ids)
        mask = paddle.triu(paddle.full([x.shape[1], x.shape[1]], -1e4, dtype=x.dtype), 1)
        return self.ln_final(self.transformer(x, src_mask=mask))


class CLIPModel(nn.Layer):
    def __init__(self, **sizes):
        super().__init__()
        text = {name: sizes[name] for name in ("hidden_size", "heads", "depth", "hidden")}
        self.vision_model = CLIPVisionTransformer(**sizes)
        self.text_model = CLIPTextTransformer(**text)

    def forward(self, input_ids, pixel_values):
        return self.vision_model(pixel_values=pixel_values)[1], self.text_model(input_ids)[:, -1]
