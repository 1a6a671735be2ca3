"""Merge tokens of PyTorch on a GPU, where launches and passes over memory are the cost.

The results are those of the array-API form (``matching/bipartite.py``, ``core/mean.py``) to rounding. These
forms launch fewer kernels, keep rows that do not merge in their own dtype, and add nothing atomically that
rounds: the same input gives the same bits. They are called only in eager mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad

from tomecore.backends import Array, Rows, Sizes, Tokens
from tomecore.backends.torch_products import sums

__all__ = ["LARGEST_R", "average_rows", "rows_of_pairs"]

#: r above which the (r, r) product of the mean costs more than atomic sums
LARGEST_R = 128
#: larger than the number of any row
_NO_ROW = 2**62

#: ``constant(build, *shape, device=device)`` returns ``build(*shape, device)``, from a cache if possible
Constant = Callable[..., Any]


def rows_of_pairs(
    constant: Constant, order: Array, partner: Array, r: int, protected: int, tokens: int
) -> Rows:
    """Return the plan of bipartite matching, as rows, with one sort.

    Args:
        constant: caches constants.
        order: (B, s) int64, the even tokens by descending similarity, counted among even tokens.
        partner: (B, r) int64, the odd token of each of the first r, counted among odd tokens.
        r: how many merge.
        protected: number of prefix tokens.
        tokens: N.
    """
    batch, evens = order.shape
    left, stay, device = tokens - r, evens - r, order.device
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    shape = batch, tokens, left, first_even, first_odd, protected + stay
    gone = order[:, :r]
    of_even, of_pair, factors = constant(_offsets, *shape, device=device)
    found = torch.empty((3, batch, r), dtype=torch.int64, device=device)
    torch.add(of_even, gone, alpha=2, out=found[0])
    torch.addcmul(of_pair, partner, factors, out=found[1:])
    of_sample, slots = constant(_slots, batch, tokens, protected, stay, device=device)
    kept = of_sample + slots
    if protected:
        # The slot of an even token that stays follows from the number of those before it. One that merges has
        # the slot of the token before it, whose row is smaller.
        slot = order.new_ones(order.shape).scatter_(1, gone, 0).cumsum(1)
        evens_by_row = constant(_evens, batch, tokens, first_even, evens, device=device)
        kept[:, protected - 1 :].scatter_reduce_(1, slot, evens_by_row, "amin")
    else:
        torch.add(of_even, order[:, r:], alpha=2, out=kept[:, :stay])
    return Rows(kept.view(-1), found[:2].view(-1), found[2].view(-1))


def average_rows(plan: Any, x: Tokens, size: Sizes | None, padded: bool) -> tuple[Tokens, Sizes]:
    """Compute ``weighted_mean(plan, x, size, padded)`` of a plan without ``keep_norm``, for r > 0.

    Only the rows that tokens merge into are computed in float32. Their sums are a product with the matrix
    of "merges into the same slot", instead of atomic additions. Zeros of that matrix must not meet
    infinity, so infinite values and NaN are left out of the product and added afterwards.
    """
    batch, _, width = x.shape
    r, rows, own_weights = plan.num_merged, _indices(plan.rows), plan.mean_weight is not None
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    padded = padded and size is not None
    size = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size.float()
    weights = size
    if own_weights:
        weights = plan.mean_weight.float()
        weights = torch.where(size > 0, weights, 0.0) if padded else weights
    sizes = size.reshape(-1).index_select(0, rows.kept)
    weight = weights.reshape(-1).index_select(0, rows.pairs).view(2, batch, r)
    into = rows.into.view(batch, r)
    same = torch.empty((batch, r, r), dtype=wide, device=x.device)
    torch.eq(into[:, :, None], into[:, None, :], out=same)
    if not own_weights and plan.size_weight is None:
        # Sizes are whole numbers, which float32 adds exactly in any order.
        sizes.index_add_(0, rows.into, weight[0].reshape(-1))
        total = sizes.index_select(0, rows.into).view(batch, r)
    else:
        total = weight[1] + _sums_of_groups(same, weight[0])
        of_pair = size.reshape(-1).index_select(0, rows.pairs).view(2, batch, r)
        gained = of_pair[0] if plan.size_weight is None else of_pair[0] * plan.size_weight.float()
        sizes = _put(sizes, rows.into, of_pair[1] + _sums_of_groups(same, gained), same)

    flat = x.reshape(-1, width)
    out = flat.index_select(0, rows.kept)
    values = flat.index_select(0, rows.pairs).view(2, batch, r, width)
    if padded or own_weights:
        # A token of weight 0 has no effect, except in a slot whose tokens all weigh 0: it keeps its own.
        some = total > 0
        total = torch.where(some, total, 1.0)
        weight = torch.stack([weight[0], torch.where(some, weight[1], 1.0)])
        values = torch.where(weight[..., None] > 0, values, 0.0)
    share = (weight.to(wide) / total.to(wide))[..., None]
    if x.dtype == wide:
        # A whole step may exceed the largest finite number, so it is added in two halves.
        halves = 0.5 * values
        step = sums(same, _finite((halves[0] - halves[1]) * share[0]))
        new = values[1] + step + step
    else:
        new = sums(same, _finite(values[0] * share[0]))
        new = _multiply_add(new, values[1], share[1], x.dtype)
    out = _put(out, rows.into, new, same)
    infinite = torch.nn.functional.hardshrink(values[0].detach(), torch.finfo(x.dtype).max)
    out.index_add_(0, rows.into, infinite.view(-1, width))
    return out.view(batch, -1, width), sizes.view(batch, -1)


def _indices(rows: Rows) -> Rows:
    """Return rows as int64, which autograd may save even if inference mode computed them."""
    if torch.is_grad_enabled() and rows.kept.is_inference():
        rows = Rows(*(part.clone() for part in rows))
    return Rows(*(part.long() for part in rows))


def _finite(x: Array) -> Array:
    """Replace infinity and NaN by 0."""
    return torch.nan_to_num(x, 0.0, 0.0, 0.0)


def _sums_of_groups(same: Array, weights: Sizes) -> Sizes:
    """Return (B, r) float32: for each merged token, the sum of ``weights`` (B, r) over its slot."""
    return (same * weights[:, None]).sum(2).float()


def _put(base: Array, rows: Array, values: Array, same: Array) -> Array:
    """Write ``values`` (B, r, ...) to rows of ``base``; equal rows get equal values.

    The gradient of a row must reach only one of them, the first.
    """
    if torch.is_grad_enabled() and values.requires_grad:
        first = torch.tril(same, -1).sum(2) == 0
        first = first[..., None] if values.ndim == 3 else first
        values = torch.where(first, values, values.detach())
    return base.index_copy_(0, rows, values.reshape(-1, *base.shape[1:]))


def _multiply_add(total: Array, x: Array, factor: Array, dtype: torch.dtype) -> Array:
    """Return ``total + x * factor``, computed in float32 and rounded once to ``dtype``."""
    gradients = total.requires_grad or x.requires_grad or factor.requires_grad
    if (torch.is_grad_enabled() and gradients) or forward_ad._current_level >= 0:
        return torch.addcmul(total, x, factor).to(dtype)
    out = torch.empty_like(total, dtype=dtype)
    return torch.addcmul(total, x, factor, out=out)


def _offsets(
    batch: int,
    tokens: int,
    left: int,
    first_even: int,
    first_odd: int,
    first_slot: int,
    device: Any,
) -> tuple[Array, Array, Array]:
    """Return the first even row of each sample (B, 1), its first odd row and slot (2, B, 1), and steps.

    The steps (2, 1, 1) are 2 and 1, by which row and slot grow from one odd token to the next.
    """
    sample = torch.arange(batch, dtype=torch.int64, device=device)[:, None]
    pair = torch.stack([sample * tokens + first_odd, sample * left + first_slot])
    steps = 2 - torch.arange(2, dtype=torch.int64, device=device)
    return sample * tokens + first_even, pair, steps[:, None, None]


def _slots(batch: int, tokens: int, protected: int, stay: int, device: Any) -> tuple[Array, Array]:
    """Return (B, 1), the first row of each sample, and (n,), its prefix and odd tokens in their slots."""
    numbers = torch.arange(tokens, dtype=torch.int64, device=device)
    first_odd = protected + 1 - protected % 2
    later = numbers.new_full((stay,), _NO_ROW)
    sample = torch.arange(0, batch * tokens, tokens, dtype=torch.int64, device=device)[:, None]
    return sample, torch.cat([numbers[:protected], later, numbers[first_odd::2]])


def _evens(batch: int, tokens: int, first: int, count: int, device: Any) -> Array:
    """Return (B, s), the rows of the even tokens."""
    sample = torch.arange(first, batch * tokens, tokens, dtype=torch.int64, device=device)[:, None]
    return sample + torch.arange(0, 2 * count, 2, dtype=torch.int64, device=device)
