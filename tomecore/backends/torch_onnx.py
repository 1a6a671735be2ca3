"""Matching and merging in few nodes of ONNX.

A runtime spends microseconds on each node, and more on each array of tokens that it writes. So tokens that
only move are gathered once, and only the odd ones are computed. Gathers are GatherND, whose indices have no
width; torch has no such operation, so these nodes are written by name. The numbers are those of
:func:`tomecore.matching.tome` and :func:`tomecore.merge_weighted`, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    given = x.dtype
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    even = range(protected + protected % 2, count, 2)
    odd = range(protected + 1 - protected % 2, count, 2)

    def constant(numbers: Sequence[int], dtype: torch.dtype = torch.int64) -> Array:
        return torch.tensor(numbers, dtype=dtype, device=x.device)

    units = _unit_keys(keys)
    cosine = _rows(units, constant(even)) @ _rows(units, constant(odd)).transpose(1, 2)
    # TopK takes the lower index in a tie. Numbers of tokens are (B, n, 1), so that they need not be reshaped.
    best, where = torch.topk(cosine, 1, dim=2)
    if protected:
        merged, order = torch.topk(best, r, dim=1)
        gone = _take(constant(even), order)
        # Prefix, even and odd tokens rank from count + 1 to 2. A cosine ranks lower, so the others are kept.
        ranks = [0] * count
        for place, token in enumerate((*range(protected), *even, *odd)):
            ranks[token] = count + 1 - place
        ranked = constant(ranks, cosine.dtype)[:, None].expand(batch, -1, -1)
        kept = torch.topk(ranked.scatter(1, gone, merged), count - r, dim=1).indices
    else:  # the even tokens that are left stay in the order of their cosines
        places = torch.topk(best, len(even), dim=1).indices
        order, left = torch.split(places, [r, len(even) - r], dim=1)
        gone = _take(constant(even), order)
        odds = constant(odd)[:, None].expand(batch, -1, -1)
        kept = torch.cat([_take(constant(even), left), odds], dim=1)
    partner = torch.gather(where, 1, order)

    first = protected + len(even) - r  # slot of the first odd token
    hits = (partner == constant(range(-first, len(odd)))).to(torch.float32)  # (B, r, slots)
    hits = hits.transpose(1, 2)
    if size is None:
        own: Array = torch.ones(1, device=x.device)
        weights: Array = torch.ones(r, 1, device=x.device)
    else:
        own, weights = _gather(size[:, :, None], kept), _gather(size[:, :, None], gone)
        x = x.to(wide) * size[:, :, None].to(wide)
    total = own + hits @ weights
    out = _gather(x, kept).to(wide) + hits.to(wide) @ _gather(x, gone).to(wide)
    sizes = total.squeeze(2)
    return Fused(
        tokens=torch.cat([kept, gone], dim=1).squeeze(2),
        into=partner.squeeze(2) + first,
        source=None,
        x=(out / total.to(wide)).to(given),
        sizes=sizes,
        bias=_in_columns(total.to(wide).log().to(given)),
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


def _rows(x: Tokens, index: Index) -> Tokens:
    """Return ``out[b, j] = x[b, index[j]]``. A Slice with steps takes twice the time."""
    return torch.onnx.ops.symbolic(
        "Gather",
        (x, index),
        {"axis": 1},
        dtype=x.dtype,
        shape=(x.shape[0], *index.shape, x.shape[2]),
    )


def _in_columns(x: Array) -> Array:
    """Return (B, 1, 1, n) of (B, n, 1)."""
    batch, count, _ = x.shape
    shape = torch.tensor([0, 1, 1, count], device=x.device)  # 0: as it was
    return torch.onnx.ops.symbolic("Reshape", (x, shape), dtype=x.dtype, shape=(batch, 1, 1, count))


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
