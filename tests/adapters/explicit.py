"""A merging ViT in plain numpy loops, sharing nothing with the engine but the model's own modules.

Softmax, proportional attention, matching and averaging are written out; norms, projections and
LayerScale are called as the modules they are. One sample at a time where that is clearer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from adapters.frameworks import Framework

__all__ = ["Layer", "attend", "class_attention", "feed", "match", "run"]


@dataclass(frozen=True)
class Layer:
    """State after a block: x (B, n, C), sizes (B, n), source (B, N) original token -> slot."""

    x: np.ndarray
    sizes: np.ndarray
    source: np.ndarray

    @property
    def restored(self) -> np.ndarray:
        return np.take_along_axis(self.x, self.source[:, :, None], axis=1)


def run(
    fw: Framework,
    blocks: Any,
    x: np.ndarray,
    amounts: list[int],
    *,
    protected: int,
    prop_attn: bool = True,
) -> list[Layer]:
    """The state after each block, for tokens ``x`` (B, N, C) and how many tokens each layer merges."""
    batch, tokens, _ = x.shape
    sizes = np.ones((batch, tokens))
    source = np.tile(np.arange(tokens), (batch, 1))
    layers = []
    for block, amount in zip(blocks, amounts, strict=True):
        residual, key = attend(fw, block, x, sizes if prop_attn else np.ones_like(sizes))
        x = x + residual
        samples = [
            _merge(x[b], sizes[b], source[b], *match(key[b], amount, protected))
            for b in range(batch)
        ]
        x, sizes, source = (np.stack(parts) for parts in zip(*samples, strict=True))
        x = x + feed(fw, block, x)
        layers.append(Layer(x, sizes, source))
    return layers


def attend(
    fw: Framework, block: Any, x: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The attention half and its keys, averaged over heads: softmax(q k / sqrt(d) + log size) v."""
    attn = block.attn
    batch, tokens, _ = x.shape
    y = _call(fw, block, "norm1", x)
    qkv = _call(fw, attn, "qkv", y).reshape(batch, tokens, 3, attn.num_heads, -1)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    q, k = _call(fw, attn, "q_norm", q), _call(fw, attn, "k_norm", k)
    weights = softmax(q @ k.transpose(0, 1, 3, 2) * attn.scale + np.log(sizes)[:, None, None, :])
    out = (weights @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, -1)
    out = _call(fw, attn, "norm", out)
    if getattr(attn, "gate", None) is not None:
        out = out / (1 + np.exp(-_call(fw, attn, "gate", y)))
    return _call(fw, block, "ls1", _call(fw, attn, "proj", out)), k.mean(axis=1)


def class_attention(fw: Framework, block: Any, x: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(B, N): with which weights the class token attends to each token, the mean over heads."""
    attn = block.attn
    batch, tokens, _ = x.shape
    qkv = _call(fw, attn, "qkv", _call(fw, block, "norm1", x))
    q, k, _ = qkv.reshape(batch, tokens, 3, attn.num_heads, -1).transpose(2, 0, 3, 1, 4)
    q, k = _call(fw, attn, "q_norm", q), _call(fw, attn, "k_norm", k)
    scores = np.einsum("bhd,bhnd->bhn", q[:, :, 0], k) * attn.scale + np.log(sizes)[:, None]
    return softmax(scores).mean(axis=1)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def feed(fw: Framework, block: Any, x: np.ndarray) -> np.ndarray:
    """The other half."""
    return _call(fw, block, "ls2", _call(fw, block, "mlp", _call(fw, block, "norm2", x)))


def match(keys: np.ndarray, amount: int, protected: int) -> tuple[list[int], dict[int, int]]:
    """One sample: tokens that stay, in output order, and merged token -> token it goes to.

    ToMe's bipartite matching: even positions look for their most similar odd position.
    """
    tokens = len(keys)
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    even = [i for i in range(protected, tokens) if i % 2 == 0]
    odd = [i for i in range(protected, tokens) if i % 2 == 1]
    amount = max(0, min(amount, (tokens - protected) // 2))
    if amount == 0:
        return list(range(tokens)), {}
    best = {i: max(odd, key=lambda j, i=i: unit[i] @ unit[j]) for i in even}
    ranked = sorted(even, key=lambda i: -(unit[i] @ unit[best[i]]))
    stay = sorted(ranked[amount:]) if protected else ranked[amount:]
    return [*range(protected), *stay, *odd], {i: best[i] for i in ranked[:amount]}


def _merge(
    x: np.ndarray, sizes: np.ndarray, source: np.ndarray, kept: list[int], into: dict[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups = [[token, *(i for i, goal in into.items() if goal == token)] for token in kept]
    slot = {token: place for place, group in enumerate(groups) for token in group}
    merged = [sum(sizes[i] * x[i] for i in group) for group in groups]
    totals = np.array([sum(sizes[i] for i in group) for group in groups])
    return np.stack(merged) / totals[:, None], totals, np.array([slot[i] for i in source])


def _call(fw: Framework, owner: Any, name: str, x: np.ndarray) -> np.ndarray:
    module = getattr(owner, name, None)
    return x if module is None else fw.numpy(module(fw.tensor(x)))
