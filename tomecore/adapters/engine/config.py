"""What the blocks of one patched model share: settings, and where results go."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.find import check_block
from tomecore.adapters.engine.host import Host, PropAttn
from tomecore.adapters.engine.passes import Passes
from tomecore.adapters.engine.spec import Spec, attribute
from tomecore.adapters.engine.state import Run, Start, Step, Switch, amounts, chain
from tomecore.adapters.engine.verify import mixes_tokens
from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.errors import ClampWarning, LostStateError, UnsupportedModelError
from tomecore.schedule import R, parse_r
from tomecore.schedule.rules import clamped

__all__ = ["CHANGED_WAY_OUT", "Config", "Observer", "Reduction", "call_part"]

#: (config, block, x (B, N, C), keys, run, amount) -> fewer tokens, and the run that knows of it
Reduction = Callable[["Config", Any, Array, list[Array], Run, int], tuple[Array, Run]]
#: (layer, key (B, N, D), plan, sizes (B, n), x (B, n, C)) of every merge, in order
Observer = Callable[[int, Array, MergePlan, Array, Array], None]


def call_part(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a part of merging; a profile puts a clock in place of this (``Handle.timings``)."""
    return function(*args)


#: schedules that ask for more than layers can merge are reported this many times, for one model
_MOST_WARNINGS = 8

#: what to do about a block that was changed
CHANGED_WAY_OUT = (
    "Undo the change, or set model.r = 0 (without trim_last). To keep it: remove_patch first, then "
    "apply_patch, "
    "which says whether the changed model can merge."
)


class Config:
    """Settings of one patched tower, and its last passes.

    The modules hold it; it holds them weakly, so that a model is freed as soon as nobody uses it, and a block
    is copied or pickled without the others.

    Args:
        host: the framework.
        spec: the family of its blocks.
        model: what ``apply_patch`` was given.
        tower: the module that owns the list of blocks.
        blocks: the blocks, in order.
        reduce: how tokens become fewer; merging, except in benchmarks.
    """

    def __init__(
        self,
        host: Host,
        spec: Spec,
        model: Any,
        tower: Any,
        blocks: list[Any],
        reduce: Reduction,
    ) -> None:
        self.host = host
        self.spec = spec
        self._root: Callable[[], Any] = weakref.ref(model)
        self._tower: Callable[[], Any] = weakref.ref(tower)
        self._blocks: dict[int, Callable[[], Any]] = {
            index: weakref.ref(block) for index, block in enumerate(blocks)
        }
        self.num_layers = len(blocks)
        self.layers = spec.layers(tower) or ""
        self.reduce = reduce
        #: prefix tokens that the family knows
        self.prefix: int = spec.prefix(tower)
        #: as the user gave them; None for those that the family knows
        self.announced: int | None = None
        #: the axis of tokens in what enters and leaves a block; the batch is the other of 0 and 1
        self.token_axis = int(spec.batch_first is None or spec.batch_first(tower))
        self.prop_attn: PropAttn = spec.prop_attn(tower)
        self.trace_source = False
        self.restore = True
        self.trim_last = False
        #: all tokens of every layer are wanted; for hidden states; by ``model.tome.all_tokens()``
        self.dense, self.recording, self.dense_by_user = Switch(), Switch(), Switch()
        #: called with every merge, see ``Handle.watch``
        self.observers: tuple[Observer, ...] = ()
        #: calls the parts of merging by name, see ``Handle.timings``
        self.call_part: Callable[..., Any] = call_part
        #: the program of a static graph, and the run in it
        self.traced_run: tuple[Any, Run] | None = None
        self._contract: Contract | None = None
        self._r: R = 0
        self._first: Step | None = chain([0] * len(blocks))
        #: modules with a hook of tomecore
        self.listening: list[Callable[[], Any]] = []
        #: what has run, and runs
        self.passes = Passes()
        #: the schedule and the number of tokens last checked for clamping; schedules already warned about
        self._looked: tuple[Step | None, int] = None, 0
        self._warned: set[tuple[int, ...]] = set()
        #: modules put into blocks after the patch that treat tokens one by one
        self._tried: weakref.WeakSet[Any] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Without the modules, which meet the copy again by ``adopt``, and without what has run."""
        state = dict(vars(self))
        for name in ("_root", "_tower", "_looked", "_warned", "_tried"):
            del state[name]
        state.update(_blocks={}, listening=[], traced_run=None, observers=(), call_part=call_part)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._root = self._tower = _nothing
        self._looked, self._warned, self._tried = (None, 0), set(), weakref.WeakSet()

    def adopt(self, module: Any) -> None:
        """Take a module of a copied or loaded model for the one it is a copy of."""
        place = vars(module)
        index = place.get("_tome_index")
        if index is not None and self._block(index) is None:
            self._blocks[index] = weakref.ref(module)
        if place.get("_tome_tower") and self._tower() is None:
            self._tower = weakref.ref(module)
        if place.get("_tome_root") and self._root() is None:
            self._root = weakref.ref(module)

    @property
    def root(self) -> Any:
        """What ``apply_patch`` was given; None where that is gone."""
        return self._root()

    @property
    def tower(self) -> Any:
        """The module that owns the blocks; None where that is gone."""
        return self._tower()

    @property
    def blocks(self) -> list[Any]:
        """The blocks in order, None for those that are gone."""
        if len(self._blocks) == self.num_layers:
            return [reference() for reference in self._blocks.values()]
        return [self._block(index) for index in range(self.num_layers)]

    def _block(self, index: int) -> Any:
        reference = self._blocks.get(index)
        return None if reference is None else reference()

    @property
    def protected(self) -> int:
        """Tokens in front that never merge."""
        return self.prefix if self.announced is None else self.announced

    @property
    def r(self) -> R:
        return list(self._r) if isinstance(self._r, list) else self._r

    @r.setter
    def r(self, value: R) -> None:
        if callable(value):
            self._first, self._r = None, value
            return
        self._first = chain(parse_r(self.num_layers, value))
        listed = isinstance(value, Sequence) and not isinstance(value, tuple)
        self._r = list(value) if listed else value  # type: ignore[arg-type]

    def schedule(self, num_tokens: int | None) -> list[int]:
        """Tokens to merge per layer, not yet clamped."""
        return parse_r(self.num_layers, self._r, num_tokens=num_tokens, protected=self.protected)

    def start(self, num_tokens: int, tracing: bool) -> Start:
        """How a forward pass of ``num_tokens`` tokens begins now."""
        step = self._first if self._first is not None else chain(self.schedule(num_tokens))
        recorded = self.recording.on(tracing) or bool(self.spec.dense(self.tower))
        every = recorded or self.dense.on(tracing)
        if recorded and not self.restore and not self.dense_by_user.on(tracing):
            self.refuse_recording(step)
        if self.trim_last and not every:
            every = self.spec.trim.watched(self.tower)  # type: ignore[union-attr]
        return Start(step, every=every)

    def refuse_recording(self, step: Step | None) -> None:
        """Raise if hidden states are recorded, which have all tokens, while fewer were asked for."""
        if any(amounts(step)):
            raise UnsupportedModelError(
                "restore=False has no effect while hidden states are recorded (output_hidden_states=True, as "
                "LLaVA and other models around a vision tower ask for): every layer hands on all tokens "
                "then. "
                "Use restore=True, or call the model without recording them."
            )

    def trims(self, run: Run, last: bool) -> bool:
        """Whether the block computes the prefix tokens only; ``last``: it is the last of the list."""
        return self.trim_last and last and not run.every

    def contract(self) -> Contract:
        """What the halves of the blocks stand for; of a loaded model, looked at anew."""
        if self._contract is None:
            blocks = [block for block in self.blocks if block is not None]
            for block in blocks:
                check_block(self.host, self.spec, block, self.where(block))
            self._contract = Contract(self.host, self.spec, blocks, self.trim_last)
        return self._contract

    def note_contract(self) -> None:
        """Note what the halves stand for: the blocks were looked at just now."""
        self._contract = Contract(self.host, self.spec, self.blocks, self.trim_last)

    def check_block(self, block: Any, *, biased: bool, trimmed: bool = False) -> None:
        """Raise if the halves of ``block`` are not what it computes by now."""
        reason = self.contract().why_changed(block, biased=biased, trimmed=trimmed)
        if reason is not None:
            start = "trim_last=True would give wrong results: " if trimmed else ""
            raise UnsupportedModelError(
                f"{start}{self.where(block)} changed since apply_patch: {reason}. {CHANGED_WAY_OUT}"
            )

    def check_children(self, block: Any, x: Array, left: int) -> None:
        """Raise if a child that was put into the block since the patch mixes tokens, by a trial.

        Args:
            block: the block that is about to run.
            x: (B, n, C), the tokens that enter it.
            left: how many tokens it leaves.
        """
        for name, module in self.contract().unknown_children(block):
            if module is None or module in self._tried or self.host.wraps(module):
                continue
            if mixes_tokens(self.host, self.spec, block, module, x, left):
                raise UnsupportedModelError(
                    f"{name} in {self.where(block)} is a {type(module).__qualname__} since apply_patch, "
                    "and what "
                    "it computes of a token depends on other tokens, of which merging leaves fewer and in "
                    f"another order. {CHANGED_WAY_OUT}"
                )
            self._tried.add(module)

    def where(self, block: Any) -> str:
        """A block's place and family, for messages."""
        return f"{self.layers}[{vars(block)['_tome_index']}] of {self.spec.family}"

    def clamp(self, run: Run) -> int:
        """Tokens the next block merges: no more than half of what is not protected."""
        if run.step is None:
            return 0
        return max(0, min(run.step.r, (run.width - self.protected) // 2))

    def look(self, step: Step | None, num_tokens: int) -> None:
        """Warn, once for each schedule, if layers are asked to merge more tokens than they can."""
        if step is self._looked[0] and num_tokens == self._looked[1]:
            return
        self._looked = step, num_tokens
        asked = amounts(step)
        if self.trim_last:
            asked[-1] = 0  # nothing merges there
        merged = clamped(asked, num_tokens, self.protected)
        layers = [i for i, (a, m) in enumerate(zip(asked, merged, strict=True)) if m < a]
        if not layers or tuple(asked) in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(tuple(asked))
        first = layers[0]
        there = num_tokens - sum(merged[:first])
        others = f", and so on in {len(layers) - 1} more layers" if len(layers) > 1 else ""
        rest = ""
        if len(self._warned) == _MOST_WARNINGS:
            rest = f" Other schedules of this model will not be reported: this is number {_MOST_WARNINGS}."
        warnings.warn(
            f"r asks for more than a layer can merge, which is half of its unprotected tokens: layer "
            f"{first} (of 0 to {len(asked) - 1}) was asked to merge {asked[first]} of {there} tokens, "
            f"{self.protected} of them protected, and merges {merged[first]}{others}. Of {num_tokens} "
            f"tokens {num_tokens - sum(merged)} are left at the end. model.r = {merged} does the same "
            "without this warning; so does "
            f"warnings.simplefilter('ignore', tomecore.errors.ClampWarning).{rest}",
            ClampWarning,
            stacklevel=2,
        )

    def check_intact(self) -> None:
        """Raise if the tower changed since it was patched in a way that merging would break."""
        tower = self.tower
        if tower is None:
            raise LostStateError(
                f"a patched block of {self.spec.family} runs without the model that it was patched in: "
                "it was copied or loaded by itself. Call remove_patch on it, then apply_patch on the "
                "model it "
                "belongs to now"
            )
        blocks = list(attribute(tower, self.layers))
        if blocks != self.blocks:
            self.check_blocks(blocks)
        if not self.restore:
            reason = self.spec.why_restore(tower)
            if reason is not None:
                raise UnsupportedModelError(
                    f"restore=False would give wrong results: {reason}. The model was changed after "
                    "apply_patch(restore=False); call apply_patch(model) again."
                )
        if self.trim_last:
            reason = self.spec.trim.why_not(tower)  # type: ignore[union-attr]
            if reason is not None:
                raise UnsupportedModelError(
                    f"trim_last=True would give wrong results: {reason}. The model was changed after "
                    "apply_patch(trim_last=True); call apply_patch(model) again without it."
                )

    def check_blocks(self, blocks: list[Any]) -> None:
        """Raise unless each block is the patched one, or a wrapper around it (compiled, FSDP)."""
        if len(blocks) != self.num_layers:
            raise LostStateError(
                f"the model has {len(blocks)} blocks and had {self.num_layers} when it was patched; "
                "call apply_patch on it again"
            )
        for index, (now, patched) in enumerate(zip(blocks, self.blocks, strict=True)):
            if all(module is not patched for _, module in self.host.named_modules(now)):
                raise LostStateError(
                    f"block {index} was replaced by a {type(now).__name__} after the model was "
                    "patched; call apply_patch on it again"
                )

    def last_run(self) -> Run | None:
        """The last run of this thread, however it ended."""
        outcome = self.passes.outcome.get(False)
        return None if outcome is None else outcome.run

    def merges_nothing(self) -> bool:
        """Whether r is 0 in every layer."""
        return not callable(self._r) and not any(self.schedule(None))


def _nothing() -> None:
    """A reference to a module that is gone."""
