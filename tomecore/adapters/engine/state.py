"""What flows between the blocks of one forward pass.

A :class:`Run` rides on the activation that leaves a block and is read by the next one, so that
threads, checkpointed recomputation and several forwards in flight each meet their own. How it rides is
the framework's business (``Host.write`` and ``Host.read``). A Run is never changed after it was made.
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
    """One layer of a schedule: merge ``r`` tokens here, and go on with ``next``.

    Linked instead of indexed, so that a compiled block depends on its own r and not on its number, which is
    ``index`` and read in eager mode only.
    """

    def __init__(self, r: int, next: Step | None, index: int) -> None:
        self.r = r
        self.next = next
        self.index = index


def amounts(step: Step | None) -> list[int]:
    """The opposite of :func:`chain`."""
    found = []
    while step is not None:
        found.append(step.r)
        step = step.next
    return found


def chain(listed: list[int]) -> Step | None:
    """Link the amounts of all layers."""
    step = None
    for index in reversed(range(len(listed))):
        step = Step(listed[index], step, index)
    return step


class Count:
    """Tokens left after a block, and ``before`` it after the earlier ones; linked for the same reason.

    ``blocks`` says how many that is.
    """

    def __init__(self, tokens: int, before: Count | None) -> None:
        self.tokens = tokens
        self.before = before
        self.blocks: int = 1 if before is None else before.blocks + 1


class Start:
    """How a run begins; a tensor that enters the first block keeps it for a recomputation.

    Args:
        step: what the first block merges, and so on.
        every: each block hands on all tokens, for readers of intermediate layers.
    """

    def __init__(self, step: Step | None, every: bool) -> None:
        self.step = step
        self.every = every

    def same(self, other: Start) -> bool:
        return self.every == other.every and amounts(self.step) == amounts(other.step)


class Entry:
    """What entered the first block in one forward pass.

    Its blocks share this object, and it keeps what a compiled block is not to depend on.

    Args:
        num_tokens: N0.
        batch: B, for sizes asked for before anything has merged.
        device: of the activations, likewise.
        number: forward passes count up; -1 for one that a backward pass recomputes from its start.
        every: each block hands on all N0 tokens, for readers of intermediate layers.
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
    """Where the tokens of a run went: its merges, the last first.

    They are composed where somebody asks, which without ``restore`` nobody does, unless their composition
    is ``known``.
    """

    def __init__(self, plan: MergePlan, before: Trail | None, known: Array | None = None) -> None:
        self.plan: MergePlan | None = plan if known is None else None
        self.before = before if known is None else None
        self.known = known

    def source(self) -> Array:
        """(B, N0) int, original token -> slot."""
        if self.known is None:
            self.known = followed(self.plan, self.before)  # type: ignore[arg-type]
            self.plan = self.before = None
        return self.known


def followed(plan: MergePlan, before: Trail | None) -> Array:
    """(B, N0) int, original token -> slot of ``plan``."""
    if before is None:
        return plan.slots
    source = before.known
    if source is None:
        source = followed(before.plan, before.before)  # type: ignore[arg-type]
    return plan.backend.xp.take_along_axis(plan.slots, source, axis=1)


class Run:
    """One forward pass between two blocks. Never changed after it was made.

    Args:
        entry: what entered the first block.
        step: what the block to come merges; None after the last block.
        width: n, tokens that are left.
        count: token counts after the blocks so far.
        sizes: (B, n) float32; None until something has merged, so nobody looks at values to find out.
        trail: where the original tokens went; None until something has merged.
        owners: (B, n) int, slot -> one original token in it; only where ``every``.
        valid: (B, N0) float32, 1 for tokens and 0 for padding; None where nothing is padding.
        bias: (B, 1, 1, n), logarithms of the sizes in the dtype of the activations, where merging made them.
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
        """N0, tokens that entered the first block."""
        return self.entry.num_tokens

    @property
    def source(self) -> Array | None:
        """(B, N0) int, original token -> slot; None until something has merged."""
        return None if self.trail is None else self.trail.source()

    @property
    def every(self) -> bool:
        """Whether each block hands on all N0 tokens."""
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
        """Blocks that are behind the run."""
        return 0 if self.count is None else self.count.blocks

    @property
    def unfinished(self) -> bool:
        """Whether its tokens are merged ones, and blocks are to come that would restore them."""
        return self.trail is not None and not self.every and self.step is not None

    @property
    def progress(self) -> tuple[int, int]:
        """Later runs and later blocks compare greater."""
        return self.entry.number, self.blocks

    def at(self, index: int) -> Run | None:
        """The same run before block ``index``, the blocks in between left out; None if it is past that."""
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
        """Whether that many are all of the run's samples and tokens, and not a part of them."""
        expected = self.num_tokens if self.every else self.width
        # While a graph is traced, a batch may be a symbol.
        return bool(tokens == expected and (tracing or samples == self.entry.batch))

    def padded(self, valid: Array) -> Run:
        """The same run, now that the padding is known: tokens of size 0."""
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
        """The same run with fewer tokens, before the block has ended."""
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
        """The same run one block later, with ``tokens`` tokens left."""
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
    """What really rides on a tensor: something, and the config of the model it belongs to.

    Pickled and copied tensors do not take it along: it becomes an empty set, which readers of
    weights-only files accept too.
    """

    def __init__(self, config: Any, value: Any) -> None:
        self.config = config
        self.value = value

    def __reduce__(self) -> tuple[type[set[Any]], tuple[()]]:
        return set, ()


def ridden(rider: Any, config: Any) -> Any:
    """What rides there for ``config``'s model, or None."""
    return rider.value if isinstance(rider, Rider) and rider.config is config else None


class ThreadSlot:
    """One value per thread; copies and pickles are empty.

    While a graph is being traced (``tracing``) the value is a plain attribute: tracers cannot follow
    thread-local storage, and only one thread traces.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced: Any = None

    def mark(self, value: Any) -> None:
        """Set the value of this thread also while a graph is traced, so that running the graph sets it.

        ``value`` is a constant of a module, or a number.
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
    """Whether something is on in this thread: on while anybody who switched it on has not left.

    Counted by who entered, and not put back to what was before, because asynchronous tasks and generators
    leave in any order, and a generator that is thrown away leaves in whatever thread collects it. While a
    graph is traced it is a plain attribute, as in :class:`ThreadSlot`.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced = False

    def on(self, tracing: bool) -> bool:
        return self._traced if tracing else bool(getattr(self._local, "entered", None))

    def enter(self, tracing: bool) -> Any:
        """Switch on; returns what :meth:`leave` takes."""
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
