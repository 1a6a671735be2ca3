"""The schedule of a pass: what it begins with, what a layer merges of it, and a warning if that is less."""

from __future__ import annotations

import warnings

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.state import Run, Start, Step, amounts, chain
from tomecore.errors import ClampWarning, UnsupportedModelError
from tomecore.schedule.rules import clamped

__all__ = ["clamp", "start_of_pass", "trims", "warn_of_clamping"]

#: schedules that ask for more than layers can merge are reported this many times, for one model
_MOST_WARNINGS = 8


def start_of_pass(config: Config, num_tokens: int, tracing: bool) -> Start:
    """How a forward pass of ``num_tokens`` tokens begins now."""
    step = (
        config.first_step if config.first_step is not None else chain(config.schedule(num_tokens))
    )
    recorded = config.recording.on(tracing) or bool(config.spec.dense(config.tower))
    every = recorded or config.dense.on(tracing)
    if recorded and not config.restore and not config.dense_by_user.on(tracing):
        refuse_recording(config, step)
    if config.trim_last and not every:
        every = config.spec.trim.watched(config.tower)  # type: ignore[union-attr]
    return Start(step, every=every)


def refuse_recording(config: Config, step: Step | None) -> None:
    """Raise if hidden states are recorded, which have all tokens, while fewer were asked for."""
    if any(amounts(step)):
        raise UnsupportedModelError(
            "restore=False has no effect while hidden states are recorded (output_hidden_states=True, as "
            "LLaVA and other models around a vision tower ask for): every layer hands on all tokens "
            "then. "
            "Use restore=True, or call the model without recording them."
        )


def trims(config: Config, run: Run, last: bool) -> bool:
    """Whether the block computes the prefix tokens only; ``last``: it is the last of the list."""
    return config.trim_last and last and not run.every


def clamp(config: Config, run: Run) -> int:
    """Tokens the next block merges: no more than half of what is not protected."""
    if run.step is None:
        return 0
    return max(0, min(run.step.r, (run.width - config.protected) // 2))


def warn_of_clamping(config: Config, step: Step | None, num_tokens: int) -> None:
    """Warn, once for each schedule, if layers are asked to merge more tokens than they can."""
    if step is config.clamping_seen[0] and num_tokens == config.clamping_seen[1]:
        return
    config.clamping_seen = step, num_tokens
    asked = amounts(step)
    if config.trim_last:
        asked[-1] = 0  # nothing merges there
    merged = clamped(asked, num_tokens, config.protected)
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
        rest = (
            f" Other schedules of this model will not be reported: this is number {_MOST_WARNINGS}."
        )
    warnings.warn(
        f"r asks for more than a layer can merge, which is half of its unprotected tokens: layer "
        f"{first} (of 0 to {len(asked) - 1}) was asked to merge {asked[first]} of {there} tokens, "
        f"{config.protected} of them protected, and merges {merged[first]}{others}. Of {num_tokens} "
        f"tokens {num_tokens - sum(merged)} are left at the end. model.r = {merged} does the same "
        "without this warning; so does "
        f"warnings.simplefilter('ignore', tomecore.errors.ClampWarning).{rest}",
        ClampWarning,
        stacklevel=2,
    )
