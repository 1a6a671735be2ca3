"""The merging forward of a block: written once, for every framework and family.

It is a mixin put in front of the block's own class, so ``super().forward`` is the original. With
nothing to merge and nothing merged before, that original runs: r=0 is exact by construction.
Written without lambdas, generators and early batch sizes, because static graphs convert this source;
and with the arguments of ``super`` written out, because Paddle's takes a bare one for
``super(type(self), self)``, which is this very mixin.
"""

from __future__ import annotations

from typing import Any

from tomecore._matching import bipartite_soft_matching
from tomecore._merging import merge_sizes, merged_mean
from tomecore._plan import compute_dtype, take_rows
from tomecore.adapters._config import Config
from tomecore.adapters._host import WAITING
from tomecore.adapters._state import Run
from tomecore.adapters._swap import Swapped
from tomecore.backends import Array
from tomecore.errors import UnsupportedModelError

__all__ = ["Merging", "merge_tokens"]


class Merging(Swapped):
    """Mixin of a patched block; ``_tome`` in its ``__dict__`` is the model's Config."""

    _tome: Config
    _tome_first: bool

    def forward(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        config = self._tome
        host = config.host
        host.run_as_is(True)
        tracing = host.tracing()
        run = config.begin(x, tracing) if self._tome_first else config.resume(x, tracing)
        if run is None:  # never merged: a block called by itself, with r = 0 everywhere
            return super(Merging, self).forward(x, *args, **kwargs)  # type: ignore[misc] # noqa: UP008
        amount = config.clamp(run)
        if amount == 0 and run.sizes is None:
            y = super(Merging, self).forward(x, *args, **kwargs)  # type: ignore[misc] # noqa: UP008
            return hand_on(config, y, run.after(run.width), tracing)
        check_arguments(config, args, kwargs)
        backend = host.backend()
        if run.every and run.owners is not None:
            x = take_rows(backend, x, run.owners)
        bias = None
        if config.prop_attn and run.sizes is not None:
            bias = host.log_sizes(run.sizes, x)
        residual, key = attend(config, self, x, bias, tracing)
        x = x + residual
        if amount > 0:
            x, run = config.reduce(config, x, key, run, amount)
        x = x + config.spec.feed(self, x)
        run = run.after(run.width - amount)
        if run.source is not None and (run.every or (run.step is None and config.restore)):
            x = take_rows(backend, x, run.source)
        return hand_on(config, x, run, tracing)


def attend(
    config: Config, block: Any, x: Array, bias: Array | None, tracing: bool
) -> tuple[Array, Array]:
    """The attention half: its residual, and the keys it computed on the way."""
    spec, taps = config.spec, config.host.taps
    if not spec.key:
        residual, key = spec.attend(config.host, block, x, bias)
        return residual, key
    taps.set(WAITING, tracing)
    residual = spec.attend(config.host, block, x, bias)
    key = taps.take(tracing)
    if key is WAITING:
        raise UnsupportedModelError(
            f"a block of {spec.family} attended without calling {spec.key!r}, whose output is the key "
            "that tokens are matched by. Something replaced the attention after apply_patch: "
            "remove_patch, then apply_patch again."
        )
    return residual, key


def hand_on(config: Config, x: Array, run: Run, tracing: bool) -> Array:
    """Let the run ride on ``x`` to the next block, and note it for ``model.tome``."""
    config.note(run, tracing)
    if run.step is not None:
        config.host.write(config, x, run, tracing)
    return x


def merge_tokens(config: Config, x: Array, key: Array, run: Run, amount: int) -> tuple[Array, Run]:
    """Match on the keys, merge ``amount`` tokens of ``x`` (B, N, C), and follow them."""
    backend = config.host.backend()
    xp = backend.xp
    key = backend.detach(key)
    key = xp.astype(key, compute_dtype(xp, key.dtype), copy=False)
    if len(key.shape) == 4:
        key = xp.mean(key, axis=config.spec.key_heads)
    plan = bipartite_soft_matching(key, amount, protected=config.protected, backend=backend)
    sizes = merge_sizes(plan, run.sizes)
    x = merged_mean(plan, x, run.sizes, sizes)
    slots = plan.slots
    source = slots if run.source is None else xp.take_along_axis(slots, run.source, axis=1)
    owners = None
    if run.every:
        owners = plan.kept
        if run.owners is not None:
            owners = xp.take_along_axis(run.owners, plan.kept, axis=1)
    if config.observer is not None:
        config.observer(len(run.tokens), key, plan, sizes, x)
    return x, run.merged(sizes, source, owners)


def check_arguments(config: Config, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that describe all tokens while there are fewer."""
    given = [f"a positional {type(a).__name__}" for a in args if a is not None]
    for name, value in kwargs.items():
        if value is not None and value is not config.spec.accepts.get(name):
            given.append(f"{name}=")
    if given:
        raise UnsupportedModelError(
            f"a patched block of {config.spec.family} was called with {', '.join(given)}, which "
            "describes all tokens while merging leaves fewer. Call the model without it, or set "
            "model.r = 0 for such calls."
        )
