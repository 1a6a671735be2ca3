"""Apply the schedule of a pass: its start, what each layer merges, and a warning if it is clamped."""

from __future__ import annotations

import warnings

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.state import (
    PassSettings,
    ScheduleNode,
    TokenState,
    link_schedule,
    unlink_schedule,
)
from tomecore.errors import ClampWarning, UnsupportedModelError
from tomecore.schedule.rules import clamp_schedule

__all__ = ["clamp", "start_of_pass", "trims", "warn_of_clamping"]

#: number of clamped schedules that are reported for one model
_MOST_WARNINGS = 8


def start_of_pass(config: Config, num_tokens: int, tracing: bool) -> PassSettings:
    """Return how a forward pass of ``num_tokens`` tokens begins, under the current settings."""
    step = (
        config.first_step
        if config.first_step is not None
        else link_schedule(config.schedule(num_tokens))
    )
    recorded = config.recording.on(tracing) or bool(config.spec.dense(config.tower))
    keep_all = recorded or config.dense.on(tracing)
    if recorded and not config.restore and not config.dense_by_user.on(tracing):
        refuse_recording(step)
    if config.trim_last and not keep_all:
        keep_all = config.spec.trim.watched(config.tower)  # type: ignore[union-attr]
    return PassSettings(step, keep_all=keep_all)


def refuse_recording(step: ScheduleNode | None) -> None:
    """Raise if hidden states, which hold all tokens, are recorded with ``restore=False``."""
    if any(unlink_schedule(step)):
        raise UnsupportedModelError(
            "restore=False has no effect while hidden states are recorded (output_hidden_states=True, which "
            "LLaVA and other models around a vision tower set): every layer then returns all tokens. Use "
            "restore=True, or call the model without recording them."
        )


def trims(config: Config, state: TokenState, last: bool) -> bool:
    """Whether the block computes only the prefix tokens; ``last``: whether it is the last of the list."""
    return config.trim_last and last and not state.keep_all


def clamp(config: Config, state: TokenState) -> int:
    """Return the number of tokens that the next block merges: at most half of its unprotected tokens."""
    if state.step is None:
        return 0
    return max(0, min(state.step.r, (state.width - config.protected) // 2))


def warn_of_clamping(config: Config, step: ScheduleNode | None, num_tokens: int) -> None:
    """Warn, once for each schedule, if it exceeds what the layers can merge."""
    if step is config.clamping_seen[0] and num_tokens == config.clamping_seen[1]:
        return
    config.clamping_seen = step, num_tokens
    asked = unlink_schedule(step)
    if config.trim_last:
        asked[-1] = 0  # nothing merges there
    merged = clamp_schedule(asked, num_tokens, config.protected)
    layers = [i for i, (a, m) in enumerate(zip(asked, merged, strict=True)) if m < a]
    if (
        not layers
        or tuple(asked) in config.clamping_warned
        or len(config.clamping_warned) >= _MOST_WARNINGS
    ):
        return
    config.clamping_warned.add(tuple(asked))
    first = layers[0]
    there = num_tokens - sum(merged[:first])
    others = f", and so on in {len(layers) - 1} more layers" if len(layers) > 1 else ""
    rest = ""
    if len(config.clamping_warned) == _MOST_WARNINGS:
        rest = f" Further schedules of this model will not be reported: this is warning {_MOST_WARNINGS}."
    warnings.warn(
        f"r exceeds what a layer can merge, which is half of its unprotected tokens: layer {first} (of 0 to "
        f"{len(asked) - 1}) should merge {asked[first]} of {there} tokens, {config.protected} of them "
        f"protected, but merges only {merged[first]}{others}. Of {num_tokens} tokens "
        f"{num_tokens - sum(merged)} are left at the end. For the same result without this warning, set "
        f"model.r = {merged}; or call warnings.simplefilter('ignore', tomecore.errors.ClampWarning).{rest}",
        ClampWarning,
        stacklevel=2,
    )
