"""Matching and merging in few nodes of ONNX.

A runtime spends microseconds on each node, and more on each array of tokens that it writes. So tokens that
only move are gathered once, and only the odd ones are computed. Gathers are GatherND, whose indices have no
width; torch has no such operation, so these nodes are written by name. The numbers are those of
:func:`tomecore.matching.tome` and :func:`tomecore.merge_weighted`, to rounding.
"""

from __future__ import annotations

import torch

from tomecore.backends import Array, Fused, Index, Keys, Sizes, Tokens

__all__ = ["match_and_merge_for_onnx"]


def match_and_merge_for_onnx(
    keys: Keys, x: Tokens, size: Sizes | None, r: int, protected: int
) -> Fused:
    """Match by the keys' cosine and merge r tokens, while a graph for ONNX is traced.

    Args:
        keys: the keys that tokens are compared by.
        x: (B, N, C).
        size: (B, N) float32, without padding; None: all tokens have size 1.
        r: 0 < r <= (N - protected) // 2.
        protected: number of prefix tokens, which do not merge.

    Returns:
        The merge. Its source is None, because most graphs do not need it.
    """
    batch, count, _ = x.shape
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    units = _unit_keys(keys)
    cosine = units[:, first_even::2] @ units[:, first_odd::2].transpose(1, 2)
    evens, odds = cosine.shape[1:]

    # Numbers of tokens are (B, n, 1), so that they need not be reshaped.
    def numbers(first: int, last: int, step: int) -> Array:
        return torch.arange(first, last, step, device=x.device)

    def in_batch(row: Array) -> Array:
        return row[:, None].expand(batch, -1, -1)

    # TopK takes the lower index in a tie.
    best, where = torch.topk(cosine, 1, dim=2)
    order = torch.topk(best, evens, dim=1).indices
    partner = torch.gather(where, 1, order[:, :r])
    ordered = _take(numbers(first_even, count, 2), order)
    gone, stay = torch.split(ordered, [r, evens - r], dim=1)
    if protected and r < evens:
        stay = torch.topk(stay, evens - r, dim=1, largest=False).values
    prefix = [in_batch(numbers(0, protected, 1))] if protected else []
    stayed = [stay] if r < evens else []
    kept = torch.cat([*prefix, *stayed, in_batch(numbers(first_odd, count, 2))], dim=1)

    first = protected + evens - r  # slot of the first odd token
    hits = partner == numbers(-first, odds, 1)  # (B, r, slots)
    ones = torch.ones(r, 1, device=x.device)
    if size is None:
        weight = hits.to(torch.float32)
        own: Array = torch.ones(1, device=x.device)
        out = _gather(x, kept).to(wide)
    else:
        size = size[:, :, None]
        weight = torch.where(hits, torch.gather(size, 1, gone), 0.0)
        own = torch.gather(size, 1, kept)
        out = _gather(x, kept).to(wide) * own.to(wide)
    weight = weight.transpose(1, 2)
    total = own + weight @ ones
    out = (out + weight.to(wide) @ _gather(x, gone).to(wide)) / total.to(wide)
    sizes = total.squeeze(2)
    return Fused(
        tokens=torch.cat([kept, gone], dim=1).squeeze(2),
        into=partner.squeeze(2) + first,
        source=None,
        x=out.to(x.dtype),
        sizes=sizes,
        bias=sizes.to(wide).log().to(x.dtype)[:, None, None, :],
    )


def _unit_keys(keys: Keys) -> Array:
    """Return (B, N, D), the sums of the keys over heads, scaled to norm 1; zeros remain zeros."""
    array = keys.array
    if array.dtype != torch.float64:
        array = array.float()
    if keys.axis is not None:
        array = array.sum(keys.axis)
    elif keys.heads > 1:
        array = array.unflatten(2, (keys.heads, -1)).sum(2)
    return torch.onnx.ops.symbolic(
        "LpNormalization", (array,), {"axis": -1, "p": 2}, dtype=array.dtype, shape=array.shape
    )


def _take(row: Array, index: Index) -> Array:
    """Return ``out[b, j, 0] = row[index[b, j, 0]]``."""
    return torch.onnx.ops.symbolic(
        "Gather", (row, index), {"axis": 0}, dtype=row.dtype, shape=index.shape
    )


def _gather(x: Tokens, index: Index) -> Tokens:
    """Return ``out[b, j] = x[b, index[b, j, 0]]`` for ``x`` (B, N, C) and ``index`` (B, n, 1)."""
    shape = (x.shape[0], index.shape[1], x.shape[2])
    return torch.onnx.ops.symbolic(
        "GatherND", (x, index), {"batch_dims": 1}, dtype=x.dtype, shape=shape
    )
