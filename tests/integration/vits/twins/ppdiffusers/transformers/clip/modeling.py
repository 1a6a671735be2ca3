"""ppdiffusers' CLIP: layers that return tuples, in both towers; masks only in that of text."""

from __future__ import annotations

from types import SimpleNamespace

import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute
from paddle.nn import functional as F


def config(**sizes):
    """The settings that the classes read."""
    return SimpleNamespace(
        layer_norm_eps=1e-5,
        attention_dropout=0.0,
        output_attentions=False,
        output_hidden_states=False,
        use_return_dict=False,
        **sizes,
    )


class CLIPVisionEmbeddings(nn.Layer):
    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = self.create_parameter([width])
        self.patch_embedding = nn.Conv2D(3, width, patch, stride=patch, bias_attr=False)
        positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = nn.Embedding(positions, width)
        self.register_buffer("position_ids", paddle.arange(positions).unsqueeze(0))

    def forward(self, pixel_values):
        x = self.patch_embedding(pixel_values).flatten(2).transpose([0, 2, 1])
        front = self.class_embedding.expand([paddle.shape(x)[0], 1, -1])
        return paddle.concat([front, x], axis=1) + self.position_embedding(self.position_ids)


class CLIPAttention(nn.Layer):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.scale = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def heads(self, x):
        return x.reshape([0, 0, self.num_heads, self.head_dim]).transpose([0, 2, 1, 3])

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        causal_attention_mask=None,
        output_attentions=False,
    ):
        q = self.heads(self.q_proj(hidden_states) * self.scale)
        k, v = self.heads(self.k_proj(hidden_states)), self.heads(self.v_proj(hidden_states))
        scores = paddle.matmul(q, k, transpose_y=True)
        for mask in (causal_attention_mask, attention_mask):
            scores = scores if mask is None else scores + mask
        weights = F.softmax(scores, axis=-1)
        y = paddle.matmul(F.dropout(weights, p=self.dropout, training=self.training), v)
        y = self.out_proj(y.transpose([0, 2, 1, 3]).flatten(2))
        return y, weights if output_attentions else None


class CLIPMLP(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.activation_fn = F.gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class CLIPEncoderLayer(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.embed_dim = config.hidden_size
        self.self_attn = CLIPAttention(config)
        self.layer_norm1 = nn.LayerNorm(self.embed_dim, epsilon=config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(self.embed_dim, epsilon=config.layer_norm_eps)

    def forward(
        self, hidden_states, attention_mask, causal_attention_mask, output_attentions=False
    ):
        y, weights = self.self_attn(
            self.layer_norm1(hidden_states),
            attention_mask,
            causal_attention_mask,
            output_attentions,
        )
        hidden_states = hidden_states + y
        hidden_states = hidden_states + self.mlp(self.layer_norm2(hidden_states))
        return (hidden_states, weights) if output_attentions else (hidden_states,)


class CLIPEncoder(nn.Layer):
    def __init__(self, config):
        super().__init__()
        layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]
        self.layers = nn.LayerList(layers)
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds,
        causal_attention_mask=None,
        output_attentions=False,
        output_states=False,
    ):
        x, states, maps = inputs_embeds, [inputs_embeds], []
        for layer in self.layers:
            given = (x, None, causal_attention_mask)
            if self.gradient_checkpointing and not x.stop_gradient:
                outputs = recompute(layer.__call__, *given, output_attentions)
            else:
                outputs = layer(*given, output_attentions=output_attentions)
            x = outputs[0]
            states.append(x)
            maps += outputs[1:]
        found = (x, tuple(states) if output_states else None, tuple(maps) or None)
        return tuple(one for one in found if one is not None)


class CLIPVisionTransformer(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = CLIPVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.encoder = CLIPEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)

    def forward(
        self,
        pixel_values=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        x = self.pre_layrnorm(self.embeddings(pixel_values))
        outputs = self.encoder(
            x, output_attentions=output_attentions, output_states=output_hidden_states
        )
        return outputs[0], self.post_layernorm(outputs[0][:, 0, :]), *outputs[1:]


class CLIPTextTransformer(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.token_embedding = nn.Embedding(50, config.hidden_size)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, input_ids):
        x = self.token_embedding(input_ids)
        mask = paddle.triu(paddle.full([x.shape[1], x.shape[1]], -1e4, dtype=x.dtype), 1)
        return self.final_layer_norm(self.encoder(x, causal_attention_mask=mask)[0])


class CLIPModel(nn.Layer):
    def __init__(self, config):
        super().__init__()
        self.text_model = CLIPTextTransformer(config)
        self.vision_model = CLIPVisionTransformer(config)

    def forward(self, input_ids, pixel_values):
        return self.vision_model(pixel_values)[1], self.text_model(input_ids)[:, -1]
