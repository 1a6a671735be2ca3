"""Try whether a spec describes an unknown block, and whether tokens may merge in it.

Before tokens merge in a block that no spec knows, everything that merging relies on is tried on a copy of the
block, in float64, with several numbers of tokens. Specs that users register are trusted, and not tried.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Spec, attributes
from tomecore.adapters.engine.swap import unswap
from tomecore.backends import Array, Tokens

__all__ = ["mixes_tokens", "why_not"]

#: relative tolerance: far above rounding in float64, far below the effect of a missing norm or scale
TOLERANCE = 1e-9
#: numbers of tokens after the prefix: an odd number, and a small grid
FEW = (13, 16)
#: a grid that also reveals wide windows and bands; fewer checks run on it, because it takes most time
MANY = (196,)
#: the same for an unknown prefix, with and without one token in front of the grid
ANY_FEW, ANY_MANY = (13, 16, 17), (196, 197)

HALVES = "its two halves do not reproduce its forward"
MIXES = (
    "its MLP half does not treat each token by itself (a convolution, a shift, a pooling or a norm over "
    "tokens, or over the batch), so that merged tokens would change the others"
)
SAMPLES = "its attention mixes the samples of a batch"
ORDER = (
    "its attention depends on the order of the tokens (a causal mask, a band, windows, or its own "
    "positions), which merging changes"
)
BIAS = "its attention does not add the mask that it gets to the scores of all tokens"


@dataclass(frozen=True)
class Trial:
    """A copy of a block, whose attention half and MLP half can be run on trial tokens.

    Args:
        host: the framework.
        spec: the spec to try.
        block: the copy of the block.
        prefix: number of prefix tokens, which never merge; the block may treat them differently.
        count: N, the number of all tokens.
        draw: generator of the random tokens, and of the choice of tokens to change.
    """

    host: Host
    spec: Spec
    block: Any
    prefix: int
    count: int
    draw: np.random.Generator

    def array(self, values: np.ndarray) -> Array:
        return self.host.backend().xp.asarray(values, device=self.host.device(self.block))

    def attend(self, x: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
        """Run the attention half on ``x`` (B, N, C), with proportional attention if ``sizes`` (B, N)."""
        host, tokens, bias = self.host, self.array(x), None
        if sizes is not None:
            log = host.log_sizes(self.array(sizes), tokens)
            bias = host.with_prop_attn_form(log, tokens)
        with host.seed_random(1):
            out: np.ndarray = host.to_numpy(self.spec.attend(host, self.block, tokens, bias, {}))
        return out

    def feed(self, y: np.ndarray) -> np.ndarray:
        """Run the MLP half on ``y`` (B, N, C)."""
        if self.spec.feed is None:
            return y
        with self.host.seed_random(1):
            out: np.ndarray = self.host.to_numpy(self.spec.feed(self.block, self.array(y)))
        return out


#: number of tokens for a trial of one module; a square, for modules that arrange tokens in a grid
_TRIED_TOKENS = 16
#: change of a token's output, relative to its largest value, that counts as mixing: far above rounding
_MIXING = 1e-3
#: factor by which one unchanged token is larger: quantising layers choose one scale for all tokens, and this
#: token fixes it, whatever the other tokens are
_LARGE = 16.0


def why_not(
    host: Host, spec: Spec, block: Any, width: int, prefix: int | None = None
) -> str | None:
    """Return the reason why tokens must not merge in ``block`` as ``spec`` says; None if they may.

    Args:
        host: the framework.
        spec: the spec to try.
        block: the block; the trial runs on a copy.
        width: channels of the block's tokens.
        prefix: number of prefix tokens, which the block may treat differently. None: unknown, so the block
            must treat all tokens alike.
    """
    few, many = (ANY_FEW, ANY_MANY) if prefix is None else (FEW, MANY)
    front = prefix or 0
    try:
        block = host.double(copy.deepcopy(block))
        for _, module in host.named_modules(block):
            unswap(module)
        with host.seed_random(0):
            draw = np.random.default_rng(0)
            for behind in (*few, *many):
                trial = Trial(host, spec, block, front, front + behind, draw)
                reason = _trial_reason(trial, width, behind in few)
                if reason is not None:
                    return reason
    except Exception as error:  # noqa: BLE001 (an unknown block may raise anything)
        return f"trying it on a copy failed with {type(error).__name__}: {error}"
    return None


def _trial_reason(trial: Trial, width: int, thorough: bool) -> str | None:
    block = trial.block
    x = trial.draw.standard_normal((2 if thorough else 1, trial.count, width))
    for start in (block.train, block.eval) if thorough else (block.eval,):
        start()
        reason = _halves_reason(trial, x)
        if reason is None and thorough:
            reason = _changed_reason(trial, x)
        if reason is None and not (block.training and _is_random(trial, x)):
            reason = _order_reason(trial, x) or _feed_reason(trial, x)
            if thorough:
                reason = reason or _bias_reason(trial, x)
        if reason is not None:
            return reason
    return None


def _is_random(trial: Trial, x: np.ndarray) -> bool:
    """Whether the block draws random numbers, so that only trials with equal shapes can be compared."""
    found = []
    for seed in (1, 2):
        with trial.host.seed_random(seed):
            found.append(trial.host.to_numpy(trial.block(trial.array(x))))
    return not np.array_equal(*found)


def _halves_reason(trial: Trial, x: np.ndarray) -> str | None:
    """Check that the two halves in sequence reproduce the block, and that the spec's key gives the keys."""
    host, spec, block = trial.host, trial.spec, trial.block
    captured_keys: list[tuple[Any, Array]] = []
    handles = [host.register_key_hook(module) for module in attributes(block, spec.key)]
    try:
        with host.seed_random(1):
            whole = host.to_numpy(block(trial.array(x)))
        host.captured_keys.set(captured_keys, False)
        with host.seed_random(1):
            y = spec.attend(host, block, trial.array(x), None, {})
            host.captured_keys.set(None, False)
            halves = host.to_numpy(y if spec.feed is None else spec.feed(block, y))
    finally:
        host.captured_keys.set(None, False)
        for handle in handles:
            handle.remove()
    if not _close(halves, whole):
        return HALVES
    if len(captured_keys) != len(handles) or any(
        key.shape[-2] != trial.count for _, key in captured_keys
    ):
        return f"{spec.key} does not give the keys, (B, H, N, D), once in each forward"
    return None


def _changed_reason(trial: Trial, x: np.ndarray) -> str | None:
    """Check that other values in some tokens of the MLP half, or in another sample, change nothing else.

    Shapes stay the same, and so do random draws: this works in training mode, and detects a batch norm.
    """
    other = x.copy()
    other[1] = trial.draw.standard_normal(other[1].shape)
    if not _close(trial.attend(other)[0], trial.attend(x)[0]):
        return SAMPLES
    changed = trial.draw.permutation(trial.count) < trial.count // 2
    other[0, changed] = trial.draw.standard_normal((int(changed.sum()), x.shape[2]))
    if not _close(trial.feed(other)[0, ~changed], trial.feed(x)[0, ~changed]):
        return MIXES
    return None


def _order_reason(trial: Trial, x: np.ndarray) -> str | None:
    """Check that reordering the tokens after the prefix only reorders the output of the attention half."""
    order = np.arange(trial.count)
    trial.draw.shuffle(order[trial.prefix :])
    sizes = trial.draw.integers(1, 5, x.shape[:2]).astype("float32")
    got, want = trial.attend(x[:, order], sizes[:, order]), trial.attend(x, sizes)[:, order]
    return None if _close(got, want) else ORDER


def _bias_reason(trial: Trial, x: np.ndarray) -> str | None:
    """Check that a token of size 2 counts as that token twice, and a token of size 0 not at all."""
    place = int(trial.draw.integers(trial.prefix, trial.count))
    rest = np.delete(np.arange(trial.count), place)
    for size, tokens in ((2, np.append(rest, [place, place])), (0, rest)):
        sizes = np.ones((2, trial.count), "float32")
        sizes[:, place] = size
        got, want = trial.attend(x, sizes), trial.attend(x[:, tokens])
        if not _close(got[:, rest], want[:, : len(rest)]):
            return BIAS
    return None


def _feed_reason(trial: Trial, x: np.ndarray) -> str | None:
    """Check that the MLP half computes the same for a token next to the prefix only as among all tokens."""
    front, behind = x[:, : trial.prefix], x[:, trial.prefix :]
    single = np.concatenate([np.repeat(front, behind.shape[1], axis=0), _rows(behind)], axis=1)
    whole, apart = trial.feed(x), trial.feed(single)
    if not _close(apart[:, trial.prefix :], _rows(whole[:, trial.prefix :])):
        return MIXES
    same = np.repeat(whole[:, : trial.prefix], behind.shape[1], axis=0)
    return None if _close(apart[:, : trial.prefix], same) else MIXES


def _rows(x: np.ndarray) -> np.ndarray:
    """Reshape (B, N, C) to (B * N, 1, C)."""
    return x.reshape(-1, 1, x.shape[2])


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or not np.isfinite(a).all():
        return False
    return a.size == 0 or bool(np.abs(a - b).max() <= TOLERANCE * np.abs(b).max())


def mixes_tokens(host: Host, spec: Spec, block: Any, module: Any, x: Tokens, left: int) -> bool:
    """Whether the output of ``module`` for a token depends on other tokens; tried on a copy of it.

    Args:
        host: the framework.
        spec: the family of the block.
        block: the block that ``module`` is a child of.
        module: a module that the halves call, usually with tokens (B, N, C).
        x: (B, n, C), the tokens that enter the block, for the dtype, the device and the shape.
        left: number of tokens after the merge.

    Returns:
        True only if a trial shows it. A module that does not run by itself (it takes another width, or more
        arguments) is tried inside the MLP half, with the number of tokens that it is about to get. If that
        raises, the forward pass raises too.
    """
    try:
        alone = copy.deepcopy(module)
        alone.eval()
    except Exception:  # noqa: BLE001 (without a copy, a trial would have side effects)
        return False
    calls = [(alone, count) for count in (_TRIED_TOKENS, int(x.shape[1]), left)]
    found = [_mixes(host, call, count, x) for call, count in calls]
    if set(found) == {None} and spec.feed is not None:
        whole = copy.deepcopy(block)
        for _, part in host.named_modules(whole):
            unswap(part)
        whole.eval()
        found = [_mixes(host, functools.partial(spec.feed, whole), left, x)]
    return True in found


def _mixes(host: Host, call: Callable[[Tokens], Any], count: int, x: Tokens) -> bool | None:
    """Whether some of the ``count`` tokens change the outputs of ``call`` for others; None if it raises."""
    xp, here = host.backend().xp, count // 2
    values = np.random.default_rng(0).standard_normal((2, count, int(x.shape[2])))
    values[:, 0] *= _LARGE
    others = values.copy()
    others[:, here:] += 1.0
    device = host.backend().device(x)
    try:
        one, two = (
            host.to_numpy(
                xp.astype(call(xp.astype(xp.asarray(a, device=device), x.dtype)), xp.float64)
            )
            for a in (values, others)
        )
    except Exception:  # noqa: BLE001 (an unknown module may raise anything; the caller tries another way)
        return None
    if one.shape != two.shape or one.shape[:2] != values.shape[:2]:
        return None
    change = np.abs(one - two).reshape(2, count, -1).max(2)
    size = np.abs(one).reshape(2, count, -1).max(2)
    return bool((change > _MIXING * size)[:, :here].any())
