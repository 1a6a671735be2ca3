"""Matching and merging as four Triton kernels, and a fifth for gradients.

They repeat ``matching.bipartite.match_bipartite`` and ``core.mean.weighted_mean``, which stay the definition:
tests compare the two. No kernel uses atomics, so the same input gives the same bits. A kernel processes
tiles of a fixed size, so that it needs the same registers for any number of tokens.

Samples are on the first axis of the grid, the only one that may exceed 65,535. Arrays are contiguous, except
keys, tokens and gradients, whose last stride is 1. ``WEIGHTED`` says whether there are sizes; a token of
size 0 is padding. Triton compiles a kernel for each value of its arguments in capitals. It does not for the
numbers of ``do_not_specialize``, which change from block to block.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "best_partners",
    "make_plan",
    "move_tokens",
    "spread_gradients",
    "unit_keys",
]

_LARGEST = tl.constexpr(3.4028234663852886e38)
_INFINITY = tl.constexpr(float("inf"))
#: keys are divided by their norm, but at least by this (``matching/similarity.py``)
_SMALLEST = tl.constexpr(1e-18)


@triton.jit(do_not_specialize=["count"])
def unit_keys(
    keys, size, units, count, heads, by_sample, by_head, by_token,
    WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sum ``keys`` (B, H, N, WIDTH) over heads and scale them to norm 1: ``units`` (B, N, WIDTH) float32.

    Keys of padding that are not finite become 0, so that padding has no effect on other tokens.
    """
    sample = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (token < count)[:, None] & (column < WIDTH)[None, :]
    key = keys + sample * by_sample + token[:, None] * by_token + column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(heads):
        total += tl.load(key, mask=inside, other=0.0).to(tl.float32)
        key += by_head
    if WEIGHTED:
        weight = tl.load(size + sample * count + token, mask=token < count, other=0.0)
        total = tl.where((weight > 0)[:, None] | (tl.abs(total) < _INFINITY), total, 0.0)
    norm = tl.sqrt_rn(tl.sum(total * total, 1))
    # A comparison with NaN is false, so a norm of NaN stays.
    unit = tl.div_rn(total, tl.where(norm < _SMALLEST, _SMALLEST, norm)[:, None])
    tl.store(units + (sample * count + token[:, None]) * WIDTH + column[None, :], unit, mask=inside)


@triton.jit(do_not_specialize=["count", "even", "odd", "evens", "odds"])
def best_partners(
    units, size, best, partner, count, even, odd, evens, odds,
    WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Find the odd token that is most similar to each even one; ties go to the first.

    Products are in float32, whatever torch allows. NaN counts as the largest similarity, as it does in
    torch's maximum and sort.

    Args:
        units: (B, N, WIDTH) float32, of which ``even`` and ``odd`` are the first tokens on each side.
        size: (B, N) float32, if WEIGHTED.
        best: (B, evens) float32, the similarity.
        partner: (B, evens) int32, the position of the partner among the odd tokens.
    """
    sample = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    mine = units + (sample * count + even + 2 * i[:, None]) * WIDTH
    highest = tl.full((ROWS,), -_INFINITY, tl.float32)
    position = tl.zeros((ROWS,), tl.int32)
    for start in range(0, odds, OTHERS):
        j = start + tl.arange(0, OTHERS)
        theirs = units + (sample * count + odd + 2 * j[None, :]) * WIDTH
        score = tl.zeros((ROWS, OTHERS), tl.float32)
        for first in range(0, WIDTH, CHUNK):
            column = first + tl.arange(0, CHUNK)
            known = column < WIDTH
            a = tl.load(
                mine + column[None, :], mask=(i < evens)[:, None] & known[None, :], other=0.0
            )
            b = tl.load(
                theirs + column[:, None], mask=(j < odds)[None, :] & known[:, None], other=0.0
            )
            score = tl.dot(a, b, acc=score, input_precision="ieee")
        if WEIGHTED:  # a token merges into padding only if all others are padding
            weight = tl.load(size + sample * count + odd + 2 * j, mask=j < odds, other=1.0)
            score = tl.where((weight > 0)[None, :], score, score - 4.0)
        score = tl.where(score == score, score, _INFINITY)
        score = tl.where((j < odds)[None, :], score, -_INFINITY)
        value = tl.max(score, 1)
        place = tl.min(tl.where(score == value[:, None], j[None, :], 2147483647), 1)
        better = value > highest
        position = tl.where(better, place, position)
        highest = tl.where(better, value, highest)
    if WEIGHTED:  # padding merges first
        weight = tl.load(size + sample * count + even + 2 * i, mask=i < evens, other=1.0)
        highest = tl.where(weight > 0, highest, highest + 8.0)
    tl.store(best + sample * evens + i, highest, mask=i < evens)
    tl.store(partner + sample * evens + i, position, mask=i < evens)


@triton.jit(
    do_not_specialize=[
        "count",
        "left",
        "protected",
        "r",
        "even",
        "odd",
        "evens",
        "odds",
        "bias_row",
    ]
)
def make_plan(
    size, best, partner, sizes, bias, tokens, into, slots,
    count, left, protected, r, even, odd, evens, odds, bias_row,
    WEIGHTED: tl.constexpr, EVENS: tl.constexpr, ODDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Choose the ``r`` even tokens with the highest similarity, and compute plan and sizes of a sample.

    Args:
        size: (B, N) float32, if WEIGHTED.
        best: (B, evens) float32, the similarity of each even token to its partner.
        partner: (B, evens) int32, the position of the partner among the odd tokens.
        sizes: (B, left) float32, the sizes after merging.
        bias: (B, bias_row), their logarithms, followed by zeros.
        tokens: (B, N) int64, the kept tokens in the order of their slots, then the merged ones.
        into: (B, r) int64, the slot that each merged token goes to.
        slots: (B, N) int64, the slot of each token.
    """
    sample = tl.program_id(0).to(tl.int64)
    size += sample * count
    best += sample * evens
    partner += sample * evens
    sizes += sample * left
    bias += sample * bias_row
    tokens += sample * count
    into += sample * r
    slots += sample * count
    stay = evens - r
    i = tl.arange(0, EVENS)
    is_even = i < evens
    value = tl.load(best + i, mask=is_even, other=-_INFINITY)

    rank = tl.zeros((EVENS,), tl.int32)  # a stable descending sort, by counting
    for start in range(0, evens, BLOCK):
        k = start + tl.arange(0, BLOCK)
        other = tl.load(best + k, mask=k < evens, other=-_INFINITY)[None, :]
        is_first = (other == value[:, None]) & (k[None, :] < i[:, None])
        is_before = ((other > value[:, None]) | is_first) & (k < evens)[None, :]
        rank += tl.sum(is_before.to(tl.int32), 1)
    merges = is_even & (rank < r)
    stays = is_even & (rank >= r)
    # The last token that merges: any other merges if it comes before this one.
    is_last = is_even & (rank == r - 1)
    last = tl.sum(tl.where(is_last, i, 0), 0)
    bound = tl.sum(tl.where(is_last, value, 0.0), 0)

    # Tokens that stay are in their own order after prefix tokens, else in the order of the sort.
    order = tl.where(protected > 0, tl.cumsum(stays.to(tl.int32), 0) - 1, rank - r)
    slot = protected + order
    mine = slots + even + 2 * i
    if WEIGHTED:
        own = tl.load(size + even + 2 * i, mask=is_even, other=1.0)
    else:
        own = tl.full((EVENS,), 1.0, tl.float32)
    tl.store(tokens + slot, (even + 2 * i).to(tl.int64), mask=stays)
    tl.store(mine, slot.to(tl.int64), mask=stays)
    tl.store(sizes + slot, own, mask=stays)
    tl.store(bias + slot, tl.log(own).to(bias.dtype.element_ty), mask=stays)
    tl.store(tokens + left + rank, (even + 2 * i).to(tl.int64), mask=merges)
    goes = (protected + stay + tl.load(partner + i, mask=is_even, other=0)).to(tl.int64)
    tl.store(into + rank, goes, mask=merges)
    tl.store(mine, goes, mask=merges)

    j = tl.arange(0, ODDS)
    is_odd = j < odds
    if WEIGHTED:
        total = tl.load(size + odd + 2 * j, mask=is_odd, other=1.0)
    else:
        total = tl.full((ODDS,), 1.0, tl.float32)
    for start in range(0, evens, BLOCK):  # sums of whole numbers are exact in any order
        k = start + tl.arange(0, BLOCK)
        known = k < evens
        other = tl.load(best + k, mask=known, other=-_INFINITY)
        leaves = known & ((other > bound) | ((other == bound) & (k <= last)))
        goes_to = tl.load(partner + k, mask=known, other=-1)
        if WEIGHTED:
            weight = tl.load(size + even + 2 * k, mask=known, other=0.0)
        else:
            weight = tl.full((BLOCK,), 1.0, tl.float32)
        arrives = (goes_to[None, :] == j[:, None]) & leaves[None, :]
        total += tl.sum(tl.where(arrives, weight[None, :], 0.0), 1)
    slot = protected + stay + j
    tl.store(tokens + slot, (odd + 2 * j).to(tl.int64), mask=is_odd)
    tl.store(slots + odd + 2 * j, slot.to(tl.int64), mask=is_odd)
    tl.store(sizes + slot, total, mask=is_odd)
    tl.store(bias + slot, tl.log(total).to(bias.dtype.element_ty), mask=is_odd)

    for start in range(0, protected, 16):
        p = start + tl.arange(0, 16)
        is_prefix = p < protected
        if WEIGHTED:
            before = tl.load(size + p, mask=is_prefix, other=1.0)
        else:
            before = tl.full((16,), 1.0, tl.float32)
        tl.store(tokens + p, p.to(tl.int64), mask=is_prefix)
        tl.store(slots + p, p.to(tl.int64), mask=is_prefix)
        tl.store(sizes + p, before, mask=is_prefix)
        tl.store(bias + p, tl.log(before).to(bias.dtype.element_ty), mask=is_prefix)
    rest = left + tl.arange(0, 16)  # attention may read a whole row of the bias
    tl.store(bias + rest, tl.zeros((16,), bias.dtype.element_ty), mask=rest < bias_row)


@triton.jit(do_not_specialize=["count", "left", "r"])
def move_tokens(
    x, size, sizes, tokens, into, out, count, left, r, by_sample, by_token,
    WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Gather the kept rows of ``x`` (B, N, WIDTH), and merge others into them: ``out`` (B, left, WIDTH).

    A slot adds its merged tokens in their order, each by its share of the new size. The sum of these steps is
    added in two halves, as in the definition, because a whole step may exceed the largest finite number. A
    row that nothing merges into keeps its bits.

    Args:
        size: (B, N) float32, if WEIGHTED; ``sizes`` (B, left) float32, the sizes after merging.
        tokens: (B, N) int64, the kept tokens, then the merged ones; ``into`` (B, r) int64, their slots.
    """
    sample = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside, known = slot < left, (column < WIDTH)[None, :]
    x += sample * by_sample
    tokens += sample * count
    token = tl.load(tokens + slot, mask=inside, other=0)
    row = tl.load(
        x + token[:, None] * by_token + column[None, :], mask=inside[:, None] & known, other=0.0
    )
    total = tl.load(sizes + sample * left + slot, mask=inside, other=1.0)
    base = row.to(tl.float32)
    if WEIGHTED:  # values of padding are arbitrary
        own = tl.load(size + sample * count + token, mask=inside, other=1.0)
        base = tl.where(((own > 0) | (total == 0))[:, None], base, 0.0)
    start = tl.minimum(tl.maximum(base, -_LARGEST), _LARGEST)

    q = tl.arange(0, MERGED)[None, :]
    slots = tl.load(into + sample * r + q, mask=q < r, other=-1)
    arrives = slots == slot[:, None]
    number = tl.sum(arrives.to(tl.int32), 1)
    last = tl.full((ROWS,), -1, tl.int32)
    step = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(tl.max(number, 0)):
        last = tl.min(tl.where(arrives & (q > last[:, None]), q, MERGED), 1)
        gone = tl.load(tokens + left + last, mask=last < MERGED, other=0)
        if WEIGHTED:
            weight = tl.load(size + sample * count + gone, mask=last < MERGED, other=0.0)
        else:
            weight = (last < MERGED).to(tl.float32)
        counts = (weight > 0)[:, None]
        other = tl.load(
            x + gone[:, None] * by_token + column[None, :], mask=counts & known, other=0.0
        )
        share = tl.div_rn(weight, tl.where(total > 0, total, 1.0))[:, None]
        step += tl.where(counts, (0.5 * other.to(tl.float32) - 0.5 * start) * share, 0.0)
    mean = tl.where((number > 0)[:, None], base + step + step, base)
    place = out + (sample * left + slot[:, None]) * WIDTH + column[None, :]
    tl.store(place, mean.to(out.dtype.element_ty), mask=inside[:, None] & known)


@triton.jit(do_not_specialize=["count", "left", "r"])
def spread_gradients(
    gradient, size, sizes, tokens, into, out, count, left, r, by_sample, by_token,
    WEIGHTED: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of tokens: each gets its share of that of its slot.

    Args:
        gradient: (B, left, WIDTH), of the merged tokens.
        out: (B, N, WIDTH), of the tokens; the others are those of :func:`move_tokens`.
    """
    sample = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    inside, known = position < count, (column < WIDTH)[None, :]
    kept = position < left
    token = tl.load(tokens + sample * count + position, mask=inside, other=0)
    slot = tl.load(into + sample * r + position - left, mask=inside & (position >= left), other=0)
    slot = tl.where(kept, position, slot)
    total = tl.load(sizes + sample * left + slot, mask=inside, other=1.0)
    if WEIGHTED:
        weight = tl.load(size + sample * count + token, mask=inside, other=0.0)
    else:
        weight = tl.full((ROWS,), 1.0, tl.float32)
    share = tl.div_rn(weight, tl.where(total > 0, total, 1.0))
    share = tl.where(kept & (total == 0), 1.0, share)[:, None]  # padding that merged with padding
    place = gradient + sample * by_sample + slot[:, None] * by_token + column[None, :]
    whole = tl.load(place, mask=inside[:, None] & known, other=0.0).to(tl.float32)
    part = tl.where(share > 0, whole * share, 0.0)
    place = out + (sample * count + token[:, None]) * WIDTH + column[None, :]
    tl.store(place, part.to(out.dtype.element_ty), mask=inside[:, None] & known)
