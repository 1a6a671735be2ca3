"""Define the state that passes from block to block in one forward pass.

A :class:`Run` is attached to the activation that a block returns, and the next block reads it. So threads,
checkpointed recomputation and concurrent forward passes each find their own. The framework decides how it is
attached (``Host.write`` and ``Host.read``). A Run is immutable.
"""

from __future__ import annotations

import threading
from typing import Any

from tomecore.backends import Array
from tomecore.core.plan import MergePlan

__all__ = [
    "Entry",
    "Rider",
    "Run",
    "Start",
    "Step",
    "Switch",
    "ThreadSlot",
    "Trail",
    "amounts",
    "chain",
    "ridden",
]


class Step:
    """One layer of a schedule: merge ``r`` tokens here, and continue with ``next``.

    The layers are linked instead of indexed, so that a compiled block depends on its own r and not on its
    number; that is ``index``, which only eager mode reads.
    """

    def __init__(self, r: int, next: Step | None, index: int) -> None:
        self.r = r
        self.next = next
        self.index = index


def amounts(step: Step | None) -> list[int]:
    """Return r of each layer from ``step`` on; the inverse of :func:`chain`."""
    found = []
    while step is not None:
        found.append(step.r)
        step = step.next
    return found


def chain(listed: list[int]) -> Step | None:
    """Link r of each layer into a chain of steps."""
    step = None
    for index in reversed(range(len(listed))):
        step = Step(listed[index], step, index)
    return step


class Count:
    """The token count after a block, linked by ``before`` to the counts after the earlier blocks.

    It is linked for the same reason as :class:`Step`. ``blocks`` is the number of blocks that have run.
    """

    def __init__(self, tokens: int, before: Count | None) -> None:
        self.tokens = tokens
        self.before = before
        self.blocks: int = 1 if before is None else before.blocks + 1


class Start:
    """How a run begins; attached to the input of the first block for a recomputation.

    Args:
        step: the schedule, from the first block on.
        every: whether each block returns all tokens, for readers of intermediate layers.
    """

    def __init__(self, step: Step | None, every: bool) -> None:
        self.step = step
        self.every = every

    def same(self, other: Start) -> bool:
        return self.every == other.every and amounts(self.step) == amounts(other.step)


class Entry:
    """The input of the first block in one forward pass.

    All blocks of the pass share this object. It holds the values that a compiled block must not depend on.

    Args:
        num_tokens: N0.
        batch: B, to build sizes that are read before anything has merged.
        device: device of the activations, for the same purpose.
        number: number of the forward pass, counting up; -1 for a recomputation in backward.
        every: whether each block returns all N0 tokens, for readers of intermediate layers.
    """

    def __init__(
        self, *, num_tokens: int, batch: Any, device: Any, number: int, every: bool
    ) -> None:
        self.num_tokens = num_tokens
        self.batch = batch
        self.device = device
        self.number = number
        self.every = every


class Trail:
    """The merges of a run, last first: where its tokens went.

    They are composed on demand, which ``restore=False`` does not need, unless the composition is ``known``.
    """

    def __init__(self, plan: MergePlan, before: Trail | None, known: Array | None = None) -> None:
        self.plan: MergePlan | None = plan if known is None else None
        self.before = before if known is None else None
        self.known = known

    def source(self) -> Array:
        """Return (B, N0) int, original token -> slot."""
        if self.known is None:
            self.known = followed(self.plan, self.before)  # type: ignore[arg-type]
            self.plan = self.before = None
        return self.known


def followed(plan: MergePlan, before: Trail | None) -> Array:
    """Return (B, N0) int, original token -> slot of ``plan``."""
    if before is None:
        return plan.slots
    source = before.known
    if source is None:
        source = followed(before.plan, before.before)  # type: ignore[arg-type]
    return plan.backend.xp.take_along_axis(plan.slots, source, axis=1)


class Run:
    """The state of one forward pass between two blocks. It is immutable.

    Args:
        entry: the input of the first block.
        step: the schedule from the next block on; None after the last block.
        width: n, the number of tokens left.
        count: token counts after the blocks so far.
        sizes: (B, n) float32; None until something has merged, so that no values need to be read.
        trail: where the original tokens went; None until something has merged.
        owners: (B, n) int, slot -> one original token in it; only if ``every``.
        valid: (B, N0) float32, 1 for tokens and 0 for padding; None without padding.
        bias: (B, 1, 1, n), log sizes in the dtype of the activations, if the fused kernels computed them.
    """

    def __init__(
        self,
        entry: Entry,
        step: Step | None,
        width: int,
        count: Count | None = None,
        sizes: Array | None = None,
        trail: Trail | None = None,
        owners: Array | None = None,
        valid: Array | None = None,
        bias: Array | None = None,
    ) -> None:
        self.entry = entry
        self.step = step
        self.width = width
        self.count = count
        self.sizes = sizes
        self.trail = trail
        self.owners = owners
        self.valid = valid
        self.bias = bias

    @property
    def num_tokens(self) -> int:
        """N0, the number of tokens that entered the first block."""
        return self.entry.num_tokens

    @property
    def source(self) -> Array | None:
        """(B, N0) int, original token -> slot; None until something has merged."""
        return None if self.trail is None else self.trail.source()

    @property
    def every(self) -> bool:
        """Whether each block returns all N0 tokens."""
        return self.entry.every

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token counts after each block so far."""
        found: list[int] = []
        count = self.count
        while count is not None:
            found.append(count.tokens)
            count = count.before
        return tuple(reversed(found))

    @property
    def blocks(self) -> int:
        """Number of blocks that have run."""
        return 0 if self.count is None else self.count.blocks

    @property
    def unfinished(self) -> bool:
        """Whether tokens are merged, and a later block must restore them."""
        return self.trail is not None and not self.every and self.step is not None

    @property
    def progress(self) -> tuple[int, int]:
        """Key for comparison: later passes, and later blocks of a pass, compare greater."""
        return self.entry.number, self.blocks

    def at(self, index: int) -> Run | None:
        """Return the run before block ``index``, skipping blocks in between; None if that block has run."""
        step, count = self.step, self.count
        while step is not None and step.index < index:
            step, count = step.next, Count(self.width, count)
        if step is None or step.index != index:
            return None
        if step is self.step:
            return self
        return Run(
            self.entry,
            step,
            self.width,
            count,
            sizes=self.sizes,
            trail=self.trail,
            owners=self.owners,
            valid=self.valid,
            bias=self.bias,
        )

    def fits(self, samples: Any, tokens: Any, tracing: bool) -> bool:
        """Whether these are all samples and tokens of the run, not only a part of them."""
        expected = self.num_tokens if self.every else self.width
        # While a graph is traced, the batch size may be a symbol.
        return bool(tokens == expected and (tracing or samples == self.entry.batch))

    def padded(self, valid: Array) -> Run:
        """Return the run with padding, as tokens of size 0."""
        return Run(
            self.entry,
            self.step,
            self.width,
            self.count,
            sizes=valid,
            trail=self.trail,
            owners=self.owners,
            valid=valid,
        )

    def merged(
        self, sizes: Array, trail: Trail, owners: Array | None, bias: Array | None = None
    ) -> Run:
        """Return the run after the merge of a block, before the end of the block."""
        return Run(
            self.entry,
            self.step,
            self.width,
            self.count,
            sizes=sizes,
            trail=trail,
            owners=owners,
            valid=self.valid,
            bias=bias,
        )

    def after(self, tokens: int) -> Run:
        """Return the run one block later, with ``tokens`` tokens left."""
        return Run(
            self.entry,
            None if self.step is None else self.step.next,
            tokens,
            Count(tokens, self.count),
            sizes=self.sizes,
            trail=self.trail,
            owners=self.owners,
            valid=self.valid,
            bias=self.bias,
        )


class Rider:
    """The payload attached to a tensor: a value, and the config of the model that attached it.

    Pickled and copied tensors lose it: it becomes an empty set, which loaders of weights-only files accept.
    """

    def __init__(self, config: Any, value: Any) -> None:
        self.config = config
        self.value = value

    def __reduce__(self) -> tuple[type[set[Any]], tuple[()]]:
        return set, ()


def ridden(rider: Any, config: Any) -> Any:
    """Return the value of ``rider`` if it belongs to ``config``; else None."""
    return rider.value if isinstance(rider, Rider) and rider.config is config else None


class ThreadSlot:
    """One value per thread; copies and pickles are empty.

    While a graph is traced (``tracing``), the value is a plain attribute: tracers do not support thread-local
    storage, and only one thread traces.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced: Any = None

    def mark(self, value: Any) -> None:
        """Set the value of this thread even while a graph is traced, so that running the graph sets it.

        ``value`` must be a module-level constant or a number.
        """
        self._local.value = value

    def get(self, tracing: bool) -> Any:
        return self._traced if tracing else getattr(self._local, "value", None)

    def set(self, value: Any, tracing: bool) -> None:
        if tracing:
            self._traced = value
        else:
            self._local.value = value

    def __reduce__(self) -> tuple[type[ThreadSlot], tuple[()]]:
        return ThreadSlot, ()


class Switch:
    """A switch per thread that is on while at least one context that entered it has not left.

    It keeps the set of contexts instead of the previous value, because asynchronous tasks and generators
    leave in any order, and a discarded generator leaves in the thread that collects it. While a graph is
    traced, the switch is a plain attribute, as in :class:`ThreadSlot`.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced = False

    def on(self, tracing: bool) -> bool:
        return self._traced if tracing else bool(getattr(self._local, "entered", None))

    def enter(self, tracing: bool) -> Any:
        """Switch on; returns the token for :meth:`leave`."""
        if tracing:
            before, self._traced = self._traced, True
            return before
        entered = getattr(self._local, "entered", None)
        if entered is None:
            entered = self._local.entered = {}
        token = object()
        entered[token] = None
        return entered, token

    def leave(self, token: Any, tracing: bool) -> None:
        if tracing:
            self._traced = token
            return
        entered, key = token
        entered.pop(key, None)

    def __reduce__(self) -> tuple[type[Switch], tuple[()]]:
        return Switch, ()
