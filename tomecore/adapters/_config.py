"""What the blocks of one patched model share: settings, and where results go."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tomecore._plan import MergePlan
from tomecore._wishes import clamped
from tomecore.adapters._host import Host, PropAttn
from tomecore.adapters._spec import Spec, attribute
from tomecore.adapters._state import Entry, Run, Start, Step, ThreadSlot, amounts, chain
from tomecore.adapters._trim import changed_since
from tomecore.backends import Array
from tomecore.errors import ClampWarning, LostStateError, UnsupportedModelError
from tomecore.schedule import R, parse_r

__all__ = ["Config", "Observer", "Reduction"]

#: (config, block, x (B, N, C), keys, run, amount) -> fewer tokens, and the run that knows of it
Reduction = Callable[["Config", Any, Array, list[Array], Run, int], tuple[Array, Run]]
#: (layer, key (B, N, D), plan, sizes (B, n), x (B, n, C)) of every merge, in order
Observer = Callable[[int, Array, MergePlan, Array, Array], None]

_numbers = itertools.count(1)

#: what a tensor keeps that entered the first block in several ways
MIXED = Start(None, every=False)


class Config:
    """Settings of one patched tower, and its last runs.

    Args:
        host: the framework.
        spec: the family of its blocks.
        tower: the module that owns the list of blocks.
        blocks: the blocks, in order.
        reduce: how tokens become fewer; merging, except in benchmarks.
    """

    def __init__(
        self, host: Host, spec: Spec, tower: Any, blocks: list[Any], reduce: Reduction
    ) -> None:
        self.host = host
        self.spec = spec
        self.tower = tower
        self.blocks = blocks
        self.layers = spec.layers(tower) or ""
        self.reduce = reduce
        self.protected = spec.prefix(tower)
        #: the axis of tokens in what enters and leaves a block; the batch is the other of 0 and 1
        self.token_axis = int(spec.batch_first is None or spec.batch_first(tower))
        self.prop_attn: PropAttn = spec.prop_attn(tower)
        self.trace_source = False
        self.restore = True
        self.trim_last = False
        #: what the attention of the last block was when the model was patched; see check_trimmed
        self.trimmed_class: type | None = None
        self.handles: list[Any] = []
        self.dense = ThreadSlot()
        self.last_run = ThreadSlot()
        self.ran_traced = False
        self.observer: Observer | None = None
        self.traced_run: Run | None = None
        self._r: R = 0
        self._first: Step | None = chain([0] * len(blocks))
        self._begun: Start | None = None
        #: the schedule and the number of tokens that were last looked at, and the schedules warned of
        self._looked: tuple[Step | None, int] = None, 0
        self._warned: set[tuple[int, ...]] = set()

    @property
    def r(self) -> R:
        return list(self._r) if isinstance(self._r, list) else self._r

    @r.setter
    def r(self, value: R) -> None:
        if callable(value):
            self._first, self._r = None, value
            return
        self._first = chain(parse_r(len(self.blocks), value))
        listed = isinstance(value, Sequence) and not isinstance(value, tuple)
        self._r = list(value) if listed else value  # type: ignore[arg-type]

    def schedule(self, num_tokens: int | None) -> list[int]:
        """Tokens to merge per layer, not yet clamped."""
        return parse_r(len(self.blocks), self._r, num_tokens=num_tokens, protected=self.protected)

    def start(self, num_tokens: int, tracing: bool) -> Start:
        """How a forward pass of ``num_tokens`` tokens begins now."""
        step = self._first if self._first is not None else chain(self.schedule(num_tokens))
        every = bool(self.dense.get(tracing)) or self.spec.dense(self.tower)
        if self.trim_last and not every:
            every = self.spec.trim.watched(self.tower)  # type: ignore[union-attr]
        return Start(step, every=every)

    def begin(self, x: Array, tracing: bool) -> Run:
        """The first block starts a run: nothing outside the blocks has to know that one begins."""
        number, tokens = 0, int(x.shape[self.token_axis])
        self.check_intact()
        if tracing:
            start = self.start(tokens, tracing)
        else:
            again = self.host.recomputing()
            kept = self.host.kept_start(self, x)
            start = self.restart(tokens, kept) if again else self.start(tokens, tracing)
            self.host.keep_start(self, x, start if again else self.remember(kept, start))
            number = -1 if again else next(_numbers)
            if start.step is not self._looked[0] or tokens != self._looked[1]:
                self.look(start.step, tokens)
        entry = Entry(
            num_tokens=tokens,
            batch=x.shape[1 - self.token_axis],
            device=None if tracing else self.host.backend().device(x),
            number=number,
            every=start.every,
        )
        return Run(entry, start.step, tokens)

    def remember(self, kept: Start | None, start: Start) -> Start:
        """What the first input of a forward pass keeps, having kept ``kept`` so far."""
        self._begun = start
        same = kept is None or (kept is not MIXED and kept.same(start))
        return start if same else MIXED

    def restart(self, num_tokens: int, kept: Start | None) -> Start:
        """How a recomputed pass of ``num_tokens`` tokens began, whose first input kept ``kept``.

        It kept nothing where the checkpointed region begins before the first block. The schedule
        cannot be had there, so it must not have changed.
        """
        if kept is MIXED:
            raise LostStateError(
                "the same tensor entered the first block under different values of r, and a "
                "checkpointed region cannot tell which one its backward pass belongs to. Give each "
                "forward pass a tensor of its own, for example a clone."
            )
        if kept is not None:
            return kept
        start = self.start(num_tokens, False)
        if self._begun is not None and not self._begun.same(start):
            raise LostStateError(
                "r was changed between a forward pass and its backward pass, and the checkpointed "
                "region begins before the first block, so the old r is not known there. Change r "
                "after backward(), or checkpoint the blocks only."
            )
        return start

    def trims(self, run: Run) -> bool:
        """Whether the next block is the last, and makes the tokens at the front alone."""
        last = run.step is not None and run.step.next is None
        return self.trim_last and last and not run.every

    def check_trimmed(self, block: Any) -> None:
        """Raise if the trimmed form of the last block would not be what the block computes by now."""
        reason = changed_since(self.host, self.spec, block, self.trimmed_class)
        if reason is not None:
            raise UnsupportedModelError(
                f"trim_last=True would give wrong results: {reason}. The model was changed after "
                "apply_patch(trim_last=True); undo that, or call apply_patch(model) again without it."
            )

    def clamp(self, run: Run) -> int:
        """Tokens the next block merges: no more than half of what is not protected."""
        if run.step is None:
            return 0
        return max(0, min(run.step.r, (run.width - self.protected) // 2))

    def look(self, step: Step | None, num_tokens: int) -> None:
        """Warn, once for each schedule, if layers are asked to merge more tokens than they can."""
        self._looked = step, num_tokens
        asked = amounts(step)
        if self.trim_last:
            asked[-1] = 0  # nothing merges there
        merged = clamped(asked, num_tokens, self.protected)
        layers = [i for i, (a, m) in enumerate(zip(asked, merged, strict=True)) if m < a]
        if not layers or tuple(asked) in self._warned:
            return
        self._warned.add(tuple(asked))
        first = layers[0]
        there = num_tokens - sum(merged[:first])
        others = f", and so on in {len(layers) - 1} more layers" if len(layers) > 1 else ""
        warnings.warn(
            f"r asks for more than a layer can merge, which is half of its unprotected tokens: layer "
            f"{first} (of 0 to {len(asked) - 1}) was asked to merge {asked[first]} of {there} tokens, "
            f"{self.protected} of them protected, and merges {merged[first]}{others}. Of {num_tokens} "
            f"tokens {num_tokens - sum(merged)} are left at the end. model.r = {merged} does the same "
            "without this warning; so does "
            "warnings.simplefilter('ignore', tomecore.errors.ClampWarning).",
            ClampWarning,
            stacklevel=2,
        )

    def check_intact(self) -> None:
        """Raise if the tower changed since it was patched in a way that merging would break."""
        blocks = list(attribute(self.tower, self.layers))
        if blocks != self.blocks:
            self.check_blocks(blocks)
        if not self.restore:
            reason = self.spec.why_restore(self.tower)
            if reason is not None:
                raise UnsupportedModelError(
                    f"restore=False would give wrong results: {reason}. The model was changed after "
                    "apply_patch(restore=False); call apply_patch(model) again."
                )
        if self.trim_last:
            reason = self.spec.trim.why_not(self.tower)  # type: ignore[union-attr]
            if reason is not None:
                raise UnsupportedModelError(
                    f"trim_last=True would give wrong results: {reason}. The model was changed after "
                    "apply_patch(trim_last=True); call apply_patch(model) again without it."
                )

    def check_blocks(self, blocks: list[Any]) -> None:
        """Raise unless each block is the patched one, or a wrapper around it (compiled, FSDP)."""
        if len(blocks) != len(self.blocks):
            raise LostStateError(
                f"the model has {len(blocks)} blocks and had {len(self.blocks)} when it was patched; "
                "call apply_patch on it again"
            )
        for index, (now, patched) in enumerate(zip(blocks, self.blocks, strict=True)):
            if all(module is not patched for _, module in self.host.named_modules(now)):
                raise LostStateError(
                    f"block {index} was replaced by a {type(now).__name__} after the model was "
                    "patched; call apply_patch on it again"
                )

    def resume(self, x: Array, tracing: bool) -> Run | None:
        """The run ``x`` belongs to; None if there is none and nothing would merge anyway."""
        run = self.host.read(self, x, tracing)
        axis = self.token_axis
        if run is not None and run.fits(x.shape[1 - axis], x.shape[axis], tracing):
            return run
        merged = run is not None and run.trail is not None
        nothing = not merged and not callable(self._r) and not any(self.schedule(None))
        if nothing and not self.trim_last:
            return None
        way_out = "apply_patch(model) again without trim_last" if nothing else "set model.r = 0"
        raise LostStateError(
            f"a patched block of {self.spec.family} got tokens of shape {tuple(x.shape)} without "
            "their sizes. The sizes ride on the tensor that the block before returned: pass that very "
            "tensor on (a copy, a slice, a cast, or a hook that returns a new tensor loses them), "
            f"call the whole model instead of single blocks, or {way_out}."
        )

    def note(self, run: Run, tracing: bool) -> None:
        """Keep ``run`` for ``model.tome``; a recomputation is not a forward pass of its own."""
        if tracing:
            self.ran_traced = True
            return
        last = self.last_run.get(False)
        if run.progress >= ((0, 0) if last is None else last.progress):
            self.ran_traced = False
            self.last_run.set(run, False)
