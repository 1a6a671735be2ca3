"""Token merging as in its published code, only as a baseline for benchmarks.

Attention is eager, with the log of sizes added to a full matrix of scores. Similarities are sorted twice.
Tokens are gathered from strided halves, scattered and concatenated, first x and then sizes. It is written
from scratch on a patched model, whose attention half and reduction it replaces. It supports models with a
fused qkv: timm's ViT, and the plain ViT of ``tomecore.models.paddle``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tomecore.adapters.engine.patch import config_of
from tomecore.frameworks import framework_of
from tomecore.loading import adapter_of

__all__ = ["published_form"]


def published_form(model: Any, r: Any) -> Any:
    """Patch an unpatched ``model`` so that it merges in the published form; only for timing."""
    framework = framework_of(model)
    config = config_of(adapter_of(framework).apply_patch(model, r=r, restore=False))
    attend, reduce = {
        "torch": (torch_attend, torch_reduce),
        "paddle": (paddle_attend, paddle_reduce),
    }[framework]
    config.spec = dataclasses.replace(config.spec, key="", attend=attend)
    config.reduce = reduce
    return model


def torch_attend(host: Any, block: Any, x: Any, bias: Any, given: Any) -> tuple[Any, Any]:
    attn, (batch, tokens, width) = block.attn, x.shape
    qkv = attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    y = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
    return x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(y)))), k


def torch_reduce(
    config: Any, block: Any, x: Any, keys: list[Any], run: Any, amount: int, entered: Any
) -> tuple[Any, Any]:
    import torch

    metric = keys[0].mean(1)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)
    scores[:, 0] = -math.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    gone, stay = order[:, :amount], order[:, amount:].sort(dim=1).values
    into = partner[..., None].gather(1, gone)

    def merge(values: Any) -> Any:
        even, odd = values[:, ::2], values[:, 1::2]
        width = values.shape[2]
        kept = even.gather(1, stay.expand(-1, -1, width))
        lost = even.gather(1, gone.expand(-1, -1, width))
        odd = odd.scatter_reduce(1, into.expand(-1, -1, width), lost, reduce="sum")
        return torch.cat([kept, odd], dim=1)

    size = torch.ones_like(x[..., :1]) if run.sizes is None else run.sizes[..., None].to(x.dtype)
    x, size = merge(x * size), merge(size)
    return x / size, run.after_merge(size[..., 0], order, None)


def paddle_attend(host: Any, block: Any, x: Any, bias: Any, given: Any) -> tuple[Any, Any]:
    import paddle

    attn, (batch, tokens, width) = block.attn, x.shape
    qkv = attn.qkv(block.norm1(x)).reshape([batch, tokens, 3, attn.num_heads, -1])
    q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
    scores = paddle.matmul(q * attn.scale, k, transpose_y=True)
    if bias is not None:
        scores = scores + bias
    y = paddle.nn.functional.softmax(scores, axis=-1).matmul(v).transpose([0, 2, 1, 3])
    y = attn.proj_drop(attn.proj(y.reshape([batch, tokens, width])))
    return x + block.drop_path(y), k


def paddle_reduce(
    config: Any, block: Any, x: Any, keys: list[Any], run: Any, amount: int, entered: Any
) -> tuple[Any, Any]:
    import paddle

    metric = keys[0].mean(1)
    metric = metric / metric.norm(axis=-1, keepdim=True)
    scores = paddle.matmul(metric[:, ::2], metric[:, 1::2], transpose_y=True)
    scores[:, 0] = -math.inf
    best, partner = scores.max(axis=-1), scores.argmax(axis=-1)
    order = best.argsort(axis=-1, descending=True).unsqueeze(-1)
    gone, stay = order[:, :amount], paddle.sort(order[:, amount:], axis=1)
    into = paddle.take_along_axis(partner.unsqueeze(-1), gone, 1)

    def merge(values: Any) -> Any:
        even, odd = values[:, ::2], values[:, 1::2]
        batch, count, width = even.shape
        kept = paddle.take_along_axis(even, stay.expand([batch, count - amount, width]), 1)
        lost = paddle.take_along_axis(even, gone.expand([batch, amount, width]), 1)
        odd = paddle.put_along_axis(odd, into.expand([batch, amount, width]), lost, 1, "add")
        return paddle.concat([kept, odd], axis=1)

    size = paddle.ones_like(x[..., :1]) if run.sizes is None else run.sizes.unsqueeze(-1)
    x, size = merge(x * size), merge(size)
    return x / size, run.after_merge(size[..., 0], order, None)
