"""Reduce the tokens of a block: match them by the keys of its attention, merge them, and follow them."""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.context import AttentionInput, BlockContext
from tomecore.adapters.engine.state import MergeHistory, TokenState
from tomecore.backends import Array, Fused, Keys, TokenKeys, Tokens
from tomecore.core.merging import weighted_mean
from tomecore.core.plan import MergePlan, compute_dtype
from tomecore.matching.bipartite import match_bipartite
from tomecore.matching.similarity import without_infinite_padding

__all__ = ["drop_tokens", "matching_key", "merge_tokens"]


def merge_tokens(
    config: Config,
    block: Any,
    x: Tokens,
    keys: list[Array],
    state: TokenState,
    r: int,
    entered: AttentionInput | None,
) -> tuple[Tokens, TokenState]:
    """Match by the keys, merge ``r`` tokens of ``x`` (B, N, C), and record where they go.

    ``entered``: what the attention got, for matchings other than tome.
    """
    backend = config.host.backend()
    part = config.call_part
    found = part("match and merge in one go", fused_merge, config, block, x, keys, state, r)
    if found is not None:
        x, sizes, bias = found.x, found.sizes, found.bias
        left = state.width - r
        plan = MergePlan.unchecked(backend, found.tokens, found.into, left, found.slots)
        history = MergeHistory(plan, state.history, found.source)
    else:
        key = part("keys: sum over heads", matching_key, config, block, keys)
        valid = None if state.valid is None else state.sizes > 0  # type: ignore[operator]
        if entered is None:
            plan = part("matching", match_bipartite, backend, key, r, config.protected, valid)
        else:
            context = BlockContext(config, block, x, state, entered)
            tracing = config.host.tracing()
            key = without_infinite_padding(backend, key, valid)
            plan = part("matching", config.method.plan, key, r, context, tracing)
        x, sizes = part("merging", weighted_mean, plan, x, state.sizes, valid is not None)
        bias, history = None, MergeHistory(plan, state.history)
    representatives = None
    if state.keep_all:
        representatives = plan.kept
        if state.representatives is not None:
            representatives = backend.xp.take_along_axis(state.representatives, plan.kept, axis=1)
    if config.observers:
        key = matching_key(config, block, keys)
        for observer in config.observers:
            observer(len(state.tokens), key, plan, sizes, x)
    return x, state.after_merge(sizes, history, representatives, bias)


def drop_tokens(
    config: Config,
    block: Any,
    x: Tokens,
    keys: list[Array],
    state: TokenState,
    r: int,
    entered: AttentionInput | None,
) -> tuple[Tokens, TokenState]:
    """Drop the last ``r`` tokens of ``x`` (B, N, C) by a slice, for the free-drop baseline."""
    return x[:, : state.width - r], state


def fused_merge(
    config: Config, block: Any, x: Tokens, keys: list[Array], state: TokenState, r: int
) -> Fused | None:
    """Match and merge by the backend's fused kernels; returns None if it has none for these arrays.

    In training and with padding, kernels are used only if they fully support both. A checkpoint runs a block
    first without gradients, and then again with gradients: both times the same tokens must merge, even near
    ties.
    """
    if not config.method.is_tome or len(keys) != 1:
        return None
    backend, spec, key = config.host.backend(), config.spec, keys[0]
    if (block.training or state.valid is not None) and not backend.fuses_fully(x):
        return None
    if len(key.shape) == 4:
        axis, heads = spec.key_heads, key.shape[spec.key_heads]
    else:
        axis, heads = None, 1 if spec.heads is None else spec.heads(block)
    source = None if state.history is None else state.history.source
    return backend.fused(Keys(key, axis, heads), x, state.sizes, source, r, config.protected)


def matching_key(config: Config, block: Any, keys: list[Array]) -> TokenKeys:
    """Return the keys (B, N, D) by which tokens are compared: their sum over heads and branches.

    This is ToMe's mean times a constant, which does not change the cosine.
    """
    spec, backend = config.spec, config.host.backend()
    xp = backend.xp
    total = None
    for key in keys:
        wide = compute_dtype(xp, key.dtype)
        if len(key.shape) == 4:
            key = backend.sum_in(key, spec.key_heads, wide)
        elif spec.heads is not None:
            heads = spec.heads(block)
            key = xp.reshape(key, (-1, key.shape[1], heads, key.shape[2] // heads))
            key = backend.sum_in(key, 2, wide)
        else:
            key = xp.astype(key, wide, copy=False)
        total = key if total is None else total + key
    return backend.detach(total)  # after the sums, which are smaller to copy in a static graph
