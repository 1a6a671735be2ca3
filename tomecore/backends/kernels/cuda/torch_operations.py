"""The Triton kernels as operations of PyTorch, with gradients: ``tomecore::match_and_merge``.

Importing this module imports Triton and registers the operations. Graphs contain them as they are, and a
compiled graph calls the same kernels as eager mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from tomecore.backends.kernels.cuda.programs import (
    best_partners,
    make_plan,
    move_tokens,
    spread_gradients,
    unit_keys,
)

__all__ = ["match_and_merge"]

#: numbers in the tile of a kernel, and in the masks of those that compare tokens
_TILE, _MASK = 2048, 4096
#: a row of the bias has a multiple of this many numbers; otherwise attention copies it
_ALIGNED = 16


def power_of_two(number: int) -> int:
    """Return the smallest power of two from 16 on that is not below ``number``."""
    return max(16, 1 << (number - 1).bit_length())


def blocks(number: int, size: int) -> int:
    """Return how many blocks of ``size`` hold ``number`` items."""
    return -(-number // size)


def tile(width: int) -> tuple[int, int]:
    """Return rows and columns of the tiles that cover rows of ``width`` numbers, if possible exactly."""
    columns = min(power_of_two(width), 256)
    while columns > 64 and width % columns:
        columns //= 2
    return _TILE // columns, columns


def with_columns(x: Tensor) -> Tensor:
    """Return ``x`` with stride 1 in the last axis, which a compiler may have changed."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_results(
    x: Tensor, r: int, bias: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return new arrays for the results of :func:`match_and_merge`, in its order."""
    batch, count, width = x.shape
    left = count - r
    row = _ALIGNED * blocks(left, _ALIGNED)
    return (
        x.new_empty((batch, left, width)),
        x.new_empty((batch, left), dtype=torch.float32),
        x.new_empty((batch, 1, 1, row), dtype=bias)[..., :left],
        x.new_empty((batch, count), dtype=torch.int64),
        x.new_empty((batch, r), dtype=torch.int64),
        x.new_empty((batch, count), dtype=torch.int64),
    )


@custom_op(
    "tomecore::match_and_merge",
    mutates_args=(),
    schema="(Tensor key, Tensor x, Tensor? size, int r, int protected, ScalarType bias)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def match_and_merge(
    key: Tensor, x: Tensor, size: Tensor | None, r: int, protected: int, bias: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Match by the cosine of keys and merge r tokens; differentiable in ``x``.

    Args:
        key: (B, H, N, D) float32, bfloat16 or float16, of stride 1 in the last axis.
        x: (B, N, C) of one of these dtypes, also of stride 1 in the last axis.
        size: (B, N) float32, contiguous; 0 for padding. None: all tokens have size 1.
        r: 0 < r <= (N - protected) // 2.
        protected: number of prefix tokens, which do not merge.
        bias: dtype of the logarithms of the sizes.

    Returns:
        The merged tokens (B, n, C); their sizes (B, n) float32; the logarithms of these (B, 1, 1, n), in rows
        that may have zeros at the end; the kept tokens, then the merged ones (B, N) int64; the slots of the
        merged tokens (B, r) int64; and the slots of all tokens (B, N) int64.
    """
    key, x = with_columns(key), with_columns(x)
    size = None if size is None else size.contiguous()
    batch, heads, count, width = key.shape
    left, even, odd = count - r, protected + protected % 2, protected + 1 - protected % 2
    evens = (count - even + 1) // 2
    odds = count - protected - evens
    merged, sizes, logs, tokens, into, slots = empty_results(x, r, bias)
    units = x.new_empty((batch, count, width), dtype=torch.float32)
    best = x.new_empty((batch, evens), dtype=torch.float32)
    partner = x.new_empty((batch, evens), dtype=torch.int32)
    weighted = size is not None
    before = sizes if size is None else size

    columns = power_of_two(width)
    rows = max(1, min(32, _MASK // columns))
    unit_keys[batch, blocks(count, rows)](
        key, before, units, count, heads, key.stride(0), key.stride(1), key.stride(2),
        WEIGHTED=weighted, WIDTH=width, COLUMNS=columns, ROWS=rows,
    )  # fmt: skip
    best_partners[batch, blocks(evens, 32)](
        units, before, best, partner, count, even, odd, evens, odds,
        WEIGHTED=weighted, WIDTH=width, CHUNK=min(columns, 64), ROWS=32, OTHERS=32,
    )  # fmt: skip
    many = power_of_two(evens)
    make_plan[batch,](
        before, best, partner, sizes, logs, tokens, into, slots,
        count, left, protected, r, even, odd, evens, odds, logs.stride(0),
        WEIGHTED=weighted, EVENS=many, ODDS=power_of_two(odds), BLOCK=max(4, min(32, _MASK // many)),
        num_warps=4 if many <= 256 else 16,
    )  # fmt: skip
    rows, columns = tile(x.shape[2])
    rows = max(1, min(rows, _TILE // power_of_two(r)))
    move_tokens[batch, blocks(left, rows), blocks(x.shape[2], columns)](
        x, before, sizes, tokens, into, merged, count, left, r, x.stride(0), x.stride(1),
        WEIGHTED=weighted, WIDTH=x.shape[2], COLUMNS=columns, ROWS=rows, MERGED=power_of_two(r),
    )  # fmt: skip
    return merged, sizes, logs, tokens, into, slots


@custom_op(
    "tomecore::merge_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor? size, Tensor sizes, Tensor tokens, Tensor into) -> Tensor",
)
def merge_gradient(
    gradient: Tensor, size: Tensor | None, sizes: Tensor, tokens: Tensor, into: Tensor
) -> Tensor:
    """Return the gradient (B, N, C) of the tokens, from that of the merged tokens, (B, n, C).

    The other arguments are those of :func:`match_and_merge`, and what it returned.
    """
    batch, left, width = gradient.shape
    count, r = tokens.shape[1], into.shape[1]
    gradient = with_columns(gradient)
    found = gradient.new_empty((batch, count, width))
    rows, columns = tile(width)
    spread_gradients[batch, blocks(count, rows), blocks(width, columns)](
        gradient, sizes if size is None else size, sizes, tokens, into, found,
        count, left, r, gradient.stride(0), gradient.stride(1),
        WEIGHTED=size is not None, WIDTH=width, COLUMNS=columns, ROWS=rows,
    )  # fmt: skip
    return found


def _save_plan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, sizes, _, tokens, into, _ = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # otherwise zeros are computed for the other results
    ctx.save_for_backward(inputs[2], sizes, tokens, into)


def _backward(ctx: Any, gradient: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    if gradient is not None:
        gradient = torch.ops.tomecore.merge_gradient(gradient, *ctx.saved_tensors)
    return None, gradient, None, None, None, None


def _save_gradient_plan(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_of_gradient(ctx: Any, change: Tensor) -> tuple[Tensor | None, ...]:
    """Return the second derivative in plain operations: a slot sums the shares of its tokens' ``change``."""
    size, sizes, tokens, into = ctx.saved_tensors
    left = sizes.shape[1]
    own = torch.arange(left, device=into.device).expand(into.shape[0], -1)
    total = sizes.gather(1, torch.cat([own, into], 1))
    weight = torch.ones_like(total) if size is None else size.gather(1, tokens)
    alone = (total == 0) & (torch.arange(total.shape[1], device=into.device) < left)
    share = torch.where(alone, 1.0, weight / torch.where(total > 0, total, 1.0))
    width = change.shape[2]
    rows = change.gather(1, tokens[:, :, None].expand(-1, -1, width)).float() * share[:, :, None]
    gone = into[:, :, None].expand(-1, -1, width)
    summed = rows[:, :left].scatter_add(1, gone, rows[:, left:])
    return summed.to(change.dtype), None, None, None, None


@match_and_merge.register_fake
def _(key: Tensor, x: Tensor, size: Tensor | None, r: int, protected: int, bias: Any) -> Any:
    return empty_results(x, r, bias)


@merge_gradient.register_fake
def _(gradient: Tensor, size: Any, sizes: Tensor, tokens: Tensor, into: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[0], tokens.shape[1], gradient.shape[2]))


match_and_merge.register_autograd(_backward, setup_context=_save_plan)
merge_gradient.register_autograd(_backward_of_gradient, setup_context=_save_gradient_plan)
