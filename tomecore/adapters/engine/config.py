"""Hold what the blocks of one patched model share: its settings and the state of its passes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.host import Host, PropAttn
from tomecore.adapters.engine.method import Method
from tomecore.adapters.engine.modules import Modules
from tomecore.adapters.engine.passes import Passes
from tomecore.adapters.engine.spec import Spec
from tomecore.adapters.engine.state import ScheduleNode, Switch, TokenState, link_schedule
from tomecore.backends import Array, Sizes, TokenKeys, Tokens
from tomecore.core.plan import MergePlan
from tomecore.schedule import R, parse_r

__all__ = ["Config", "Observer", "Reduction", "call_part"]

#: (config, block, x (B, N, C), keys, state, r, AttentionInput or None) -> the tokens that are left, and the
#: updated state
Reduction = Callable[
    ["Config", Any, Tokens, list[Array], TokenState, int, Any], tuple[Tokens, TokenState]
]
#: (layer, key (B, N, D), plan, sizes (B, n), x (B, n, C)) of every merge, in order
Observer = Callable[[int, TokenKeys, MergePlan, Sizes, Tokens], None]

T = TypeVar("T")


#: the default
TOME = Method("tome")


class CallPart(Protocol):
    """A function that calls a part of merging by its name, and returns what the part returns."""

    def __call__(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``."""


def call_part(name: str, function: Callable[..., T], *args: Any) -> T:
    """Call a part of merging; ``Handle.timings`` replaces this function by one that measures time."""
    return function(*args)


class Config:
    """Settings of one patched tower, and the state of its passes.

    The modules hold the config, and it holds them weakly: so a model is freed when it is no longer used, and
    a block is copied or pickled without the others.

    Args:
        host: the framework.
        spec: the family of the blocks.
        model: the model that ``apply_patch`` was called with.
        tower: the module that owns the list of blocks.
        blocks: the blocks, in order.
        reduce: function that reduces the tokens; it merges, except in the free-drop baseline.
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
        #: number of prefix tokens that the family knows
        self.prefix: int = spec.prefix(tower)
        #: number of prefix tokens that the user passed; None: as many as the family knows
        self.announced: int | None = None
        #: axis of the tokens in the input and output of a block, 0 or 1; the batch is the other one
        self.token_axis = int(spec.batch_first is None or spec.batch_first(tower))
        self.prop_attn: PropAttn = spec.prop_attn(tower)
        self.method = TOME
        self.trace_source = False
        self.restore = True
        self.trim_last = False
        #: whether every block returns all tokens; for recorded hidden states; by ``all_tokens()``
        self.dense, self.recording, self.dense_by_user = Switch(), Switch(), Switch()
        #: functions that are called with every merge, see ``Handle.watch``
        self.observers: tuple[Observer, ...] = ()
        #: function that calls the parts of merging by name, see ``Handle.timings``
        self.call_part: CallPart = call_part
        #: the program of a static graph that is being traced, and the state in it
        self.traced_state: tuple[Any, TokenState] | None = None
        self.contract: Contract | None = None
        self._r: R = 0
        self.first_step: ScheduleNode | None = link_schedule([0] * len(blocks))
        #: the state of the last and the current passes
        self.passes = Passes()
        #: the schedule and the number of tokens last checked for clamping; schedules already warned about
        self.clamping_seen: tuple[ScheduleNode | None, int] = None, 0
        self.clamping_warned: set[tuple[int, ...]] = set()
        #: modules that were put into blocks after the patch, and treat each token by itself
        self.tried: weakref.WeakSet[Any] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings, without observers, warnings given and modules tried."""
        state = dict(vars(self))
        for name in ("clamping_seen", "clamping_warned", "tried"):
            del state[name]
        state.update(traced_state=None, observers=(), call_part=call_part)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.clamping_seen, self.clamping_warned, self.tried = (None, 0), set(), weakref.WeakSet()

    def adopt(self, module: Any) -> None:
        """Register a module of a copied or loaded model in place of the original."""
        self.modules.adopt(module)

    @property
    def root(self) -> Any:
        """The model that ``apply_patch`` was called with; None if it was freed."""
        return self.modules.root

    @property
    def tower(self) -> Any:
        """The module that owns the list of blocks; None if it was freed."""
        return self.modules.tower

    @property
    def blocks(self) -> list[Any]:
        """The blocks in order; None for each one that was freed."""
        return self.modules.blocks

    @property
    def protected(self) -> int:
        """Number of prefix tokens, which never merge."""
        return self.prefix if self.announced is None else self.announced

    @property
    def r(self) -> R:
        """Tokens merged per layer, in the form in which it was set."""
        return list(self._r) if isinstance(self._r, list) else self._r

    @r.setter
    def r(self, value: R) -> None:
        if callable(value):
            self.first_step, self._r = None, value
            return
        self.first_step = link_schedule(parse_r(self.num_layers, value))
        listed = isinstance(value, Sequence) and not isinstance(value, tuple)
        self._r = list(value) if listed else value  # type: ignore[arg-type]

    def schedule(self, num_tokens: int | None) -> list[int]:
        """Return the tokens to merge in each layer, before clamping."""
        return parse_r(self.num_layers, self._r, num_tokens=num_tokens, protected=self.protected)

    def merges_nothing(self) -> bool:
        """Whether r is 0 in every layer."""
        return not callable(self._r) and not any(self.schedule(None))
