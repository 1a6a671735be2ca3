"""A plain pre-norm vision transformer in Paddle, in the names of PLSC and PaddleClas.

It exists so that the demo, the parity tests and a user without a working Paddle model library have
a model to patch. Parameter names, layouts (Linear weights are (in, out)) and child layers are
PLSC's and PaddleClas', so their published weights load, and code that adapts their blocks adapts
these too. The network is that of ``tomecore.models.torch``. It imports paddle, and from this package
only ``tomecore.models``.

The model supports ``paddle.jit.to_static`` with a dynamic batch: it never reads the batch size,
reshapes use -1, and tokens are broadcast over the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.nn.initializer import Constant, TruncatedNormal

from tomecore.models._arguments import check_architecture
from tomecore.models._paddle_weights import load_weights

__all__ = ["Attention", "Block", "Mlp", "PatchEmbed", "VisionTransformer", "load_weights"]


class DropPath(nn.Layer):
    """Stochastic depth, which drops the residual branch of whole samples in training."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = 1.0 - self.drop_prob
        return x * (paddle.bernoulli(paddle.full_like(x[:, :1, :1], keep)) / keep)


class PatchEmbed(nn.Layer):
    """Patch embedding, from images (B, in_chans, H, W) to tokens (B, N, embed_dim)."""

    def __init__(
        self, img_size: tuple[int, int], patch_size: tuple[int, int], in_chans: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid_size = (img_size[0] // patch_size[0], img_size[1] // patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2D(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from images (B, in_chans, H, W)."""
        _check_image(x.shape[2:], self.img_size)
        y: Tensor = self.proj(x).flatten(2).transpose([0, 2, 1])
        return y


class Attention(nn.Layer):
    """Multi-head self-attention on Paddle's fused kernel."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = False, qk_scale: float | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        self.qkv = _linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = _linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from tokens (B, N, C)."""
        n, c = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape([-1, n, 3, self.num_heads, self.head_dim])
        q, k, v = qkv.unbind(axis=2)
        attend = self._fused if isinstance(self.attn_drop, nn.Dropout) else self._by_products
        y: Tensor = self.proj_drop(self.proj(attend(q, k, v).reshape([-1, n, c])))
        return y

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Flash kernels accept no scale, so it is passed only if it is not the default.
        own: dict[str, Any] = {} if self.scale == self.head_dim**-0.5 else {"scale": self.scale}
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.attn_drop.p, training=self.training, **own
        )

    def _by_products(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend without the fused kernel, so that a wrapper of ``paddle.quantization`` gets the weights."""
        q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q * self.scale, k, v))
        weights = self.attn_drop(F.softmax(paddle.matmul(q, k, transpose_y=True)))
        y: Tensor = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
        return y


class Mlp(nn.Layer):
    """Two linear layers with a GELU between: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = _linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = _linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from tokens (B, N, C)."""
        y: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
        return y


class Block(nn.Layer):
    """Pre-norm transformer block; both residual branches share one ``drop_path``."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_path: float = 0.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, epsilon=epsilon)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, epsilon=epsilon)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Compute tokens (B, N, C) from tokens (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class VisionTransformer(nn.Layer):
    """Plain vision transformer, with the parameter names and numbers of PLSC and PaddleClas.

    Args:
        img_size: Height and width in pixels, one int for both.
        patch_size: The same for a patch; at most ``img_size``.
        in_chans: Channels of an image.
        class_num: Outputs of the head; 0 for no head.
        embed_dim: Channels of a token, a multiple of ``num_heads``.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLP, as a multiple of ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        qk_scale: Factor on the attention scores; None for ``head_dim**-0.5``.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0; in [0, 1).
        epsilon: Epsilon of every LayerNorm.
        class_token: Whether a class token comes first.
        distilled: Whether a distillation token, with its own head, follows the class token.
        global_pool: "token" reads the class token, "avg" the mean of the patch tokens (then the
            last norm comes after pooling and is called ``fc_norm``).

    Raises:
        ValueError: An argument is out of range, or two do not fit each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        class_num: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_path_rate: float = 0.0,
        epsilon: float = 1e-5,
        class_token: bool = True,
        distilled: bool = False,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        image, patch = check_architecture(
            class_num=class_num,
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

        self.class_num = class_num
        self.num_features = self.embed_dim = embed_dim
        self.global_pool = global_pool
        self.num_prefix_tokens = int(class_token) + int(distilled)
        self.patch_embed = PatchEmbed(image, patch, in_chans, embed_dim)
        num_tokens = self.patch_embed.num_patches + self.num_prefix_tokens
        self.pos_embed = self._token(num_tokens)
        self.cls_token = self._token() if class_token else None
        self.dist_token = self._token() if distilled else None
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.LayerList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale, rate, epsilon)
            for rate in rates
        )
        norm = nn.LayerNorm(embed_dim, epsilon=epsilon)
        average = global_pool == "avg"
        self.norm = nn.Identity() if average else norm
        self.fc_norm = norm if average else nn.Identity()
        self.head = _linear(embed_dim, class_num) if class_num else nn.Identity()
        if distilled:
            self.head_dist = _linear(embed_dim, class_num) if class_num else nn.Identity()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VisionTransformer:
        """Build from arguments in neutral names: ``num_classes`` and ``norm_eps``, as in torch."""
        here = {"num_classes": "class_num", "norm_eps": "epsilon"}
        return cls(**{here.get(name, name): value for name, value in config.items()})

    def _token(self, count: int = 1) -> Tensor:
        shape = [1, count, self.embed_dim]
        return self.create_parameter(shape, default_initializer=TruncatedNormal(std=0.02))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute tokens (B, prefix + patches, embed_dim) from images (B, in_chans, H, W)."""
        x = self.patch_embed(x)
        tokens = [x]
        if self.dist_token is not None:
            tokens.insert(0, _over_batch(self.dist_token, x))
        if self.cls_token is not None:
            tokens.insert(0, _over_batch(self.cls_token, x))
        x = paddle.concat(tokens, axis=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x)
        return y

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify.

        Args:
            x: Tokens (B, N, embed_dim) from :meth:`forward_features`.
            pre_logits: Stop before the head and return the pooled features (B, embed_dim).

        Returns:
            Logits (B, class_num); distilled: the mean of both heads, in training too.
        """
        if self.dist_token is not None:
            token, distilled = x[:, 0], x[:, 1]
            if not pre_logits:
                token, distilled = self.head(token), self.head_dist(distilled)
            return (token + distilled) / 2
        average = self.global_pool == "avg"
        x = self.fc_norm(x[:, self.num_prefix_tokens :].mean(axis=1) if average else x[:, 0])
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, class_num) from images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def _over_batch(token: Tensor, x: Tensor) -> Tensor:
    """Return a token (1, 1, C) for every image of x (B, N, C), without reading B."""
    return paddle.zeros_like(x[:, :1]) + token.astype(x.dtype)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    bias_attr = paddle.ParamAttr(initializer=Constant(0.0)) if bias else False
    weight_attr = paddle.ParamAttr(initializer=TruncatedNormal(std=0.02))
    return nn.Linear(inputs, outputs, weight_attr=weight_attr, bias_attr=bias_attr)


def _check_image(got: list[int], expected: tuple[int, int]) -> None:
    if tuple(got) != expected:
        raise ValueError(
            f"images are {tuple(got)} pixels, the model takes {expected}: "
            "resize them, or build the model with that img_size"
        )
