"""What flows between the blocks of one forward pass.

A :class:`Run` rides on the activation that leaves a block and is read by the next one, so that
threads, checkpointed recomputation and several forwards in flight each meet their own. How it rides is
the framework's business (``Host.write`` and ``Host.read``). A Run is never changed after it was made.
"""

from __future__ import annotations

import threading
from typing import Any

from tomecore.backends import Array

__all__ = ["Rider", "Run", "Start", "Step", "ThreadSlot", "amounts", "chain", "ridden"]


class Step:
    """One layer of a schedule: merge ``r`` tokens here, and go on with ``next``.

    Linked instead of indexed, so that a compiled block depends on its own r and not on its number.
    """

    def __init__(self, r: int, next: Step | None) -> None:
        self.r = r
        self.next = next


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
    for r in reversed(listed):
        step = Step(r, step)
    return step


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


class Run:
    """One forward pass between two blocks. Never changed after it was made.

    Args:
        step: what the block to come merges; None after the last block.
        num_tokens: N0, tokens that entered the first block.
        tokens: token counts after each block so far.
        sizes: (B, n) float32; None until something has merged, so nobody looks at values to find out.
        source: (B, N0) int, original token -> slot; None until something has merged.
        owners: (B, n) int, slot -> one original token in it; only where ``every``.
        number: runs count up; -1 for one that a backward pass recomputes from its start.
        every: each block hands on all N0 tokens, for readers of intermediate layers.
        batch: B, for sizes asked for before anything has merged.
        device: of the activations, likewise.
    """

    def __init__(
        self,
        *,
        step: Step | None,
        num_tokens: int,
        number: int,
        every: bool,
        batch: Any,
        device: Any,
        tokens: tuple[int, ...] = (),
        sizes: Array | None = None,
        source: Array | None = None,
        owners: Array | None = None,
    ) -> None:
        self.step = step
        self.num_tokens = num_tokens
        self.number = number
        self.every = every
        self.batch = batch
        self.device = device
        self.tokens = tokens
        self.sizes = sizes
        self.source = source
        self.owners = owners

    @property
    def progress(self) -> tuple[int, int]:
        """Later runs and later blocks compare greater."""
        return self.number, len(self.tokens)

    @property
    def width(self) -> int:
        """n, tokens that are left."""
        return self.tokens[-1] if self.tokens else self.num_tokens

    def fits(self, x: Array, tracing: bool) -> bool:
        """Whether ``x`` is all of the run's tokens, and not a part of them."""
        tokens = self.num_tokens if self.every else self.width
        # While a graph is traced, a batch may be a symbol.
        return bool(x.shape[1] == tokens and (tracing or x.shape[0] == self.batch))

    def merged(self, sizes: Array, source: Array, owners: Array | None) -> Run:
        """The same run with fewer tokens, before the block has ended."""
        return self._with(self.step, self.tokens, sizes, source, owners)

    def after(self, tokens: int) -> Run:
        """The same run one block later, with ``tokens`` tokens left."""
        step = None if self.step is None else self.step.next
        return self._with(step, (*self.tokens, tokens), self.sizes, self.source, self.owners)

    def _with(
        self,
        step: Step | None,
        tokens: tuple[int, ...],
        sizes: Array | None,
        source: Array | None,
        owners: Array | None,
    ) -> Run:
        return Run(
            step=step,
            num_tokens=self.num_tokens,
            number=self.number,
            every=self.every,
            batch=self.batch,
            device=self.device,
            tokens=tokens,
            sizes=sizes,
            source=source,
            owners=owners,
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

    def get(self, tracing: bool) -> Any:
        return self._traced if tracing else getattr(self._local, "value", None)

    def set(self, value: Any, tracing: bool) -> None:
        if tracing:
            self._traced = value
        else:
            self._local.value = value

    def take(self, tracing: bool) -> Any:
        value = self.get(tracing)
        self.set(None, tracing)
        return value

    def __reduce__(self) -> tuple[type[ThreadSlot], tuple[()]]:
        return ThreadSlot, ()
