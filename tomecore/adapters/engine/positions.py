"""Remap what describes tokens by position, RoPE tables and position biases, to merged tokens.

Every library passes the same table of all N0 tokens to each block. So nothing is carried from block to
block: each block computes the table of its merged tokens from the state's map of original tokens to slots.
"""

from __future__ import annotations

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.state import TokenState
from tomecore.backends import Array, Backend, Tokens
from tomecore.core.plan import compute_dtype
from tomecore.errors import UnsupportedModelError

__all__ = ["merge_position_bias", "merge_rotary_table", "original_counts"]

#: a small normal number in float32; its logarithm is -87
SMALLEST = 2e-38


def merge_rotary_table(host: Host, table: Array, state: TokenState) -> Array:
    """Remap a rotary table to merged tokens: the plain mean of cos and sin over each group.

    For equal keys, the mean over a group of q R(p) k is exactly q (mean R) k; a rotation by the mean angle,
    or by the angle of the destination, is not exact. Groups with spread positions are damped.

    Args:
        host: the framework.
        table: (N', D) | (B, 1, N', D) | (H, N', D) | (B, H, N', D): rows for the last N' tokens of the
            run; the prefix tokens before them have no position and never merge.
        state: which tokens have merged.

    Returns:
        (B, 1, n', D), or (B, H, n', D) if the table has heads, in the dtype of ``table``.
    """
    if state.source is None:
        return table
    xp = host.backend().xp
    prefix = state.num_tokens - table.shape[-2]
    width = table.shape[-1]
    if len(table.shape) == 2:
        heads, rows = 1, table[None]
    elif len(table.shape) == 3:
        heads = table.shape[0]
        rows = xp.reshape(xp.permute_dims(table, (1, 0, 2)), (1, -1, heads * width))
    else:
        heads = table.shape[1]
        tokens = table.shape[2]
        rows = xp.reshape(xp.permute_dims(table, (0, 2, 1, 3)), (-1, tokens, heads * width))
    merged = group_mean(host.backend(), rows, state, prefix)
    merged = xp.reshape(merged, (-1, state.width - prefix, heads, width))
    return xp.astype(xp.permute_dims(merged, (0, 2, 1, 3)), table.dtype, copy=False)


def merge_position_bias(host: Host, bias: Array, state: TokenState) -> Array:
    """Remap position biases to merged tokens: average the exponentials of rows and columns over each group.

    Biases are added to scores, and scores are exponents of weights. So rows and columns are averaged as
    exponentials, log(mean(exp(bias))). Over columns that is exact for equal keys and values; the error of the
    plain mean is two to five times as large (docs/design.md).

    Args:
        host: the framework.
        bias: (B or 1, H, N0, N0), one value for each pair of original tokens.
        state: which tokens have merged.

    Returns:
        (B, H, n, n) in the dtype of ``bias``. It is as large as the attention scores.

    Raises:
        UnsupportedModelError: ``bias`` does not describe all N0 tokens.
    """
    if state.source is None:
        return bias
    backend, n, n0 = host.backend(), state.width, state.num_tokens
    if bias.shape[-1] != n0 or bias.shape[-2] != n0:
        raise UnsupportedModelError(
            f"a bias of shape {tuple(bias.shape)} does not describe the {n0} tokens that entered the first "
            "block, so it cannot be merged; set model.r = 0 for such calls"
        )
    xp, heads, dtype = backend.xp, bias.shape[1], bias.dtype
    wide = xp.astype(bias, compute_dtype(xp, dtype), copy=False)
    top = backend.detach(xp.max(xp.reshape(wide, (-1,)), axis=0))
    factor = xp.exp(wide - top)
    for _ in range(2):  # the rows, then, with the axes swapped, the columns
        left = factor.shape[-1]
        rows = xp.reshape(xp.permute_dims(factor, (0, 2, 1, 3)), (-1, n0, heads * left))
        rows = xp.reshape(group_mean(backend, rows, state, 0), (-1, n, heads, left))
        factor = xp.permute_dims(rows, (0, 2, 3, 1))
    # A row must not be -inf throughout; a bias this far below the others has the same effect.
    least = xp.zeros_like(factor) + SMALLEST
    merged = xp.log(xp.where(factor > SMALLEST, factor, least)) + top
    return xp.astype(merged, dtype, copy=False)


def group_mean(backend: Backend, rows: Tokens, state: TokenState, prefix: int) -> Tokens:
    """Average the rows (B or 1, N0 - prefix, C) of the original tokens over each group, without padding.

    Returns (B, n - prefix, C), float32 or float64; groups that hold only padding are 0.
    """
    xp = backend.xp
    rows = xp.astype(rows, compute_dtype(xp, rows.dtype), copy=False)
    sizes = state.sizes
    if state.history is not None and state.history.weighted:
        sizes = original_counts(backend, state, state.valid)
    source, sizes = state.source[:, prefix:] - prefix, sizes[:, prefix:]  # type: ignore[index]
    ones = xp.ones_like(sizes)  # not 1: Paddle's static graphs divide it by an operation ONNX lacks
    weight = xp.take_along_axis(ones / xp.where(sizes > 0, sizes, ones), source, axis=1)
    if state.valid is not None:
        weight = weight * state.valid[:, prefix:]
    rows_of_all = xp.astype(weight, rows.dtype)[:, :, None] * rows
    empty = xp.zeros_like(rows_of_all[:, : state.width - prefix])
    return backend.scatter_add(empty, source, rows_of_all)


def original_counts(backend: Backend, state: TokenState, valid: Array | None = None) -> Array:
    """Return (B, n) float32: the number of original tokens in each slot, including dropped ones.

    Args:
        backend: of the state's arrays.
        state: after at least one merge.
        valid: (B, N0) float32, 1 for tokens and 0 for padding, which then does not count; None: it counts.
    """
    xp, source = backend.xp, state.source
    ones = xp.astype(xp.ones_like(source), xp.float32)
    empty = xp.astype(xp.zeros_like(state.sizes), xp.float32)
    return backend.add_sizes(empty, source, ones if valid is None else ones * valid)
