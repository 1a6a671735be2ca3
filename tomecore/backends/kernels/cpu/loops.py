"""Matching and merging as two loops over memory, which ``compile.py`` compiles for a CPU with Numba.

They repeat ``matching.bipartite.match_bipartite`` and ``core.mean.weighted_mean``, which stay the definition:
tests compare the two. The loops use only addresses and strides, so they serve every library that provides
these. They run over slices, because an index that may be negative cannot be vectorised.
"""

from __future__ import annotations

import numpy as np
from numba import carray, extending, njit, types

__all__ = ["merge_at", "units_at"]

#: sums may be reordered, and products fused; NaN and infinity stay what they are
_SUMS = {"reassoc", "contract", "arcp", "nsz"}
#: a maximum may be computed in any order; for a row with NaN it is any number
_MAXIMA = {*_SUMS, "nnan"}

_SMALLEST = np.float32(1e-18)
_NOTHING = np.float32(1e-30)
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LARGEST = np.float32(np.finfo(np.float32).max)


def wide(value):
    """Return an element as float32; bfloat16 arrives as its 16 bits."""


def narrow(value, like):
    """Return a float32 as an element of the dtype of ``like``, rounded to even."""


@extending.overload(wide, inline="always")
def _wide(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


@extending.overload(narrow, inline="always")
def _narrow(value, like):
    if like == types.uint16:
        return _round_bfloat16
    return lambda value, like: value


def _round_bfloat16(value, like):
    bits = np.float32(value).view(np.uint32)
    if value != value:
        return np.uint16(0x7FC0)
    odd = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit(fastmath=_SUMS, error_model="numpy")
def _units(key, samples, count, first, heads, width, by_sample, by_token, by_head, out):
    """Fill in ``out``: the keys of every second token, summed over heads, at length 1; zero keys stay 0."""
    total = np.empty(width, np.float32)
    for b in range(samples):
        for i in range(count):
            start = b * by_sample + (first + 2 * i) * by_token
            head = key[start : start + width]
            for d in range(width):
                total[d] = wide(head[d])
            for h in range(1, heads):
                head = key[start + h * by_head : start + h * by_head + width]
                for d in range(width):
                    total[d] += wide(head[d])
            squares = np.float32(0)
            for d in range(width):
                squares += total[d] * total[d]
            length = max(np.sqrt(squares), _SMALLEST)
            unit = out[b, i]
            for d in range(width):
                unit[d] = total[d] / length


@njit(fastmath=_MAXIMA)
def _largest(row):
    found = row[0]
    for j in range(row.shape[0]):
        found = row[j] if row[j] > found else found
    return found


@njit
def _first_place(row, value):
    for j in range(row.shape[0]):
        if row[j] == value:
            return j
    return 0


@njit(error_model="numpy")
def _choose(cosine, r, protected, tokens, into):
    """Fill in a sample's plan: ``tokens`` (N,), kept and then merged ones, and ``into`` (r,)."""
    evens, odds = cosine.shape
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    stay = evens - r
    best = np.empty(evens, np.float32)
    for i in range(evens):
        best[i] = -_largest(cosine[i])
    order = np.argsort(best, kind="mergesort")
    for i in range(protected):
        tokens[i] = i
    if protected:
        gone = np.zeros(evens, np.bool_)
        for j in range(r):
            gone[order[j]] = True
        slot = protected
        for i in range(evens):
            if not gone[i]:
                tokens[slot] = first_even + 2 * i
                slot += 1
    else:
        for j in range(stay):
            tokens[j] = first_even + 2 * order[r + j]
    for j in range(odds):
        tokens[protected + stay + j] = first_odd + 2 * j
    for j in range(r):
        i = order[j]
        tokens[protected + stay + odds + j] = first_even + 2 * i
        into[j] = protected + stay + _first_place(cosine[i], -best[i])


@njit(error_model="numpy")
def _move(x, start, by_token, width, tokens, into, weights, sizes, out):
    """Fill in a sample's merged tokens: each destination moves towards the tokens that merge into it.

    Each move is a share of the distance, in two halves and from a finite number, as in ``weighted_mean``.
    Sums must not be reordered: that would join the halves again.
    """
    slots = out.shape[0]
    for j in range(slots):
        source = x[start + tokens[j] * by_token : start + tokens[j] * by_token + width]
        row = out[j]
        for c in range(width):
            row[c] = source[c]
    moved = np.empty((into.shape[0], width), np.float32)
    place = np.full(slots, -1, np.int64)
    used = 0
    for j in range(into.shape[0]):
        slot = into[j]
        gone, own = start + tokens[slots + j] * by_token, start + tokens[slot] * by_token
        source, base = x[gone : gone + width], x[own : own + width]
        share = weights[j] / max(sizes[slot], _NOTHING)
        if place[slot] < 0:
            place[slot] = used
            used += 1
            row = moved[place[slot]]
            for c in range(width):
                row[c] = wide(base[c])
        row = moved[place[slot]]
        for c in range(width):
            origin = min(max(wide(base[c]), -_LARGEST), _LARGEST)
            step = (_HALF * wide(source[c]) - _HALF * origin) * share
            row[c] = (row[c] + step) + step
    for slot in range(slots):
        if place[slot] >= 0:
            row, to = moved[place[slot]], out[slot]
            for c in range(width):
                to[c] = narrow(row[c], to[c])


@njit(error_model="numpy")
def _merge(
    cosine, x, by_sample, by_token, r, protected, size, source, out, sizes, logs, plan, into, now
):
    """Merge all samples in sequence; ``size`` and ``source`` have no columns if nothing has merged yet."""
    samples, slots, width = out.shape
    count = slots + r
    weights, slot_of = np.empty(r, np.float32), np.empty(count, np.int64)
    for b in range(samples):
        tokens, place = plan[b], into[b]
        _choose(cosine[b], r, protected, tokens, place)
        for j in range(slots):
            sizes[b, j] = size[b, tokens[j]] if size.shape[1] else _ONE
            slot_of[tokens[j]] = j
        for j in range(r):
            weights[j] = size[b, tokens[slots + j]] if size.shape[1] else _ONE
            sizes[b, place[j]] += weights[j]
            slot_of[tokens[slots + j]] = place[j]
        for j in range(slots):
            logs[b, j] = narrow(np.float32(np.log(sizes[b, j])), logs[b, j])
        for j in range(now.shape[1]):
            now[b, j] = slot_of[source[b, j] if source.shape[1] else j]
        _move(x, b * by_sample, by_token, width, tokens, place, weights, sizes[b], out[b])


_ANY = 1 << 62  # length of memory whose extent follows from strides


def units_at(key, samples, count, heads, width, by_sample, by_token, by_head, protected, even, odd):
    """Fill in the even and odd units and return 1; the compiled function returns 0 if this one raises."""
    memory = carray(key, (_ANY,))
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    evens, odds = (count - first_even + 1) // 2, (count - first_odd + 1) // 2
    units = carray(even, (samples, evens, width))
    _units(memory, samples, evens, first_even, heads, width, by_sample, by_token, by_head, units)
    units = carray(odd, (samples, odds, width))
    _units(memory, samples, odds, first_odd, heads, width, by_sample, by_token, by_head, units)
    return 1


def merge_at(
    cosine,
    x,
    samples,
    count,
    width,
    by_sample,
    by_token,
    r,
    protected,
    weighted,
    size,
    originals,
    composed,
    source,
    out,
    sizes,
    logs,
    tokens,
    into,
    now,
):
    """Match and merge, and return 1; 0 as in :func:`units_at`."""
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    evens, odds = (count - first_even + 1) // 2, (count - first_odd + 1) // 2
    slots = count - r
    _merge(
        carray(cosine, (samples, evens, odds)),
        carray(x, (_ANY,)),
        by_sample,
        by_token,
        r,
        protected,
        carray(size, (samples, count * weighted)),
        carray(source, (samples, originals * composed)),
        carray(out, (samples, slots, width)),
        carray(sizes, (samples, slots)),
        carray(logs, (samples, slots)),
        carray(tokens, (samples, count)),
        carray(into, (samples, r)),
        carray(now, (samples, originals)),
    )  # fmt: skip
    return 1
