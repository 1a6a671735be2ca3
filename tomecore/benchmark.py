"""What merging can give at most, what it gives, and what it costs.

Two limits frame every measurement. The arithmetic limit counts multiplications of the model's own
layers. The free-drop limit is measured: the same model in the same run whose blocks drop r tokens by a
slice, without matching, merging or bias; it is what the machine can really give. The merge tax is the
time of merging over the time of free-drop. Everything is timed interleaved, because machines drift.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tomecore.adapters._config import Config
from tomecore.adapters._patch import config_of
from tomecore.adapters._state import Run
from tomecore.backends import Array
from tomecore.errors import NotPatchedError
from tomecore.schedule import R, tokens_per_layer

__all__ = ["arithmetic_limit", "drop_tokens", "free_drop", "interleave", "multiply_adds"]


def multiply_adds(model: Any, num_tokens: int, r: R) -> float:
    """Multiply-adds of one image through a patched model at ``r``: matrix products only.

    Attention sees the tokens before a layer's merge, the MLP those after it (design section 6).

    Args:
        model: a patched model.
        num_tokens: tokens that enter the first block, protected ones included.
        r: any form of r.
    """
    config = _config(model)
    after = tokens_per_layer(len(config.blocks), r, num_tokens, config.protected)
    before = [num_tokens, *after[:-1]]
    in_blocks, total = 0.0, 0.0
    for block, n, m in zip(config.blocks, before, after, strict=True):
        width = int(next(iter(block.norm1.parameters())).shape[0])
        attention, mlp = _weights(block.attn), _weights(block.mlp)
        in_blocks += attention + mlp
        total += n * attention + 2 * n * n * width + m * mlp
    patches = num_tokens - config.protected
    for parameter in config.tower.parameters():
        if len(parameter.shape) == 4:
            total += patches * math.prod(parameter.shape)
    return total + (_weights(config.tower) - in_blocks)


def arithmetic_limit(model: Any, num_tokens: int, r: R) -> float:
    """How much faster a patched model can get by arithmetic alone."""
    return multiply_adds(model, num_tokens, 0) / multiply_adds(model, num_tokens, r)


def drop_tokens(
    config: Config, block: Any, x: Array, keys: list[Array], run: Run, amount: int
) -> tuple[Array, Run]:
    """A reduction that costs nothing: the last ``amount`` tokens go."""
    return x[:, : run.width - amount], run


def free_drop(model: Any) -> Any:
    """Turn a patched model into one that drops tokens instead of merging them; for timing only."""
    config = _config(model)
    config.reduce = drop_tokens
    config.restore = False
    return model


def interleave(calls: Mapping[str, Callable[[], Any]], rounds: int) -> Iterator[dict[str, float]]:
    """Time the calls in turn, ``rounds`` times after one warm-up; seconds by name, per round."""
    for call in calls.values():
        call()
    for _ in range(rounds):
        seconds = {}
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - start
        yield seconds


def median_ratio(rounds: list[dict[str, float]], over: str, under: str) -> float:
    """Median of ``over / under`` within each round, so that slow rounds cancel."""
    return statistics.median(seconds[over] / seconds[under] for seconds in rounds)


def _config(model: Any) -> Config:
    config = config_of(model)
    if config is None:
        raise NotPatchedError(f"this {type(model).__name__} is not patched; call apply_patch first")
    return config


def _weights(module: Any) -> float:
    return float(sum(math.prod(p.shape) for p in module.parameters() if len(p.shape) == 2))
