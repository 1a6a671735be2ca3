"""What the blocks of one patched model share: settings, and where results go."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.host import Host, PropAttn
from tomecore.adapters.engine.modules import Modules
from tomecore.adapters.engine.passes import Passes
from tomecore.adapters.engine.spec import Spec
from tomecore.adapters.engine.state import Run, Step, Switch, chain
from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.schedule import R, parse_r

__all__ = ["Config", "Observer", "Reduction", "call_part"]

#: (config, block, x (B, N, C), keys, run, amount) -> fewer tokens, and the run that knows of it
Reduction = Callable[["Config", Any, Array, list[Array], Run, int], tuple[Array, Run]]
#: (layer, key (B, N, D), plan, sizes (B, n), x (B, n, C)) of every merge, in order
Observer = Callable[[int, Array, MergePlan, Array, Array], None]


def call_part(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a part of merging; a profile puts a clock in place of this (``Handle.timings``)."""
    return function(*args)


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
        self.modules = Modules(model, tower, blocks)
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
        self.contract: Contract | None = None
        self._r: R = 0
        self.first_step: Step | None = chain([0] * len(blocks))
        #: what has run, and runs
        self.passes = Passes()
        #: the schedule and the number of tokens last checked for clamping; schedules already warned about
        self.clamping_seen: tuple[Step | None, int] = None, 0
        self.clamping_warned: set[tuple[int, ...]] = set()
        #: modules put into blocks after the patch that treat tokens one by one
        self.tried: weakref.WeakSet[Any] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Without what has run, and what was seen on the way."""
        state = dict(vars(self))
        for name in ("clamping_seen", "clamping_warned", "tried"):
            del state[name]
        state.update(traced_run=None, observers=(), call_part=call_part)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.clamping_seen, self.clamping_warned, self.tried = (None, 0), set(), weakref.WeakSet()

    def adopt(self, module: Any) -> None:
        """Take a module of a copied or loaded model for the one it is a copy of."""
        self.modules.adopt(module)

    @property
    def root(self) -> Any:
        """What ``apply_patch`` was given; None where that is gone."""
        return self.modules.root

    @property
    def tower(self) -> Any:
        """The module that owns the blocks; None where that is gone."""
        return self.modules.tower

    @property
    def blocks(self) -> list[Any]:
        """The blocks in order, None for those that are gone."""
        return self.modules.blocks

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
            self.first_step, self._r = None, value
            return
        self.first_step = chain(parse_r(self.num_layers, value))
        listed = isinstance(value, Sequence) and not isinstance(value, tuple)
        self._r = list(value) if listed else value  # type: ignore[arg-type]

    def schedule(self, num_tokens: int | None) -> list[int]:
        """Tokens to merge per layer, not yet clamped."""
        return parse_r(self.num_layers, self._r, num_tokens=num_tokens, protected=self.protected)

    def last_run(self) -> Run | None:
        """The last run of this thread, however it ended."""
        outcome = self.passes.outcome.get(False)
        return None if outcome is None else outcome.run

    def merges_nothing(self) -> bool:
        """Whether r is 0 in every layer."""
        return not callable(self._r) and not any(self.schedule(None))
