"""Define the state that passes from block to block in one forward pass.

A :class:`TokenState` is attached to the activation that a block returns, and the next block reads it. So
threads, checkpointed recomputation and concurrent forward passes each find their own. The framework decides
how it is attached (``Host.write`` and ``Host.read``). It is immutable.
"""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

from tomecore.backends import Bias, Index, Sizes
from tomecore.core.plan import MergePlan

__all__ = [
    "Attachment",
    "ForwardInfo",
    "MergeHistory",
    "PassSettings",
    "ScheduleNode",
    "Switch",
    "ThreadSlot",
    "TokenState",
    "attached_value",
    "link_schedule",
    "unlink_schedule",
]

T = TypeVar("T")


class ScheduleNode:
    """One layer of a schedule: merge ``r`` tokens here, and continue with ``next``.

    The layers are linked instead of indexed, so that a compiled block depends on its own r and not on its
    number; that is ``index``, which only eager mode reads.
    """

    def __init__(self, r: int, next: ScheduleNode | None, index: int) -> None:
        self.r = r
        self.next = next
        self.index = index


def unlink_schedule(step: ScheduleNode | None) -> list[int]:
    """Return r of each layer from ``step`` on; the inverse of :func:`link_schedule`."""
    found = []
    while step is not None:
        found.append(step.r)
        step = step.next
    return found


def link_schedule(listed: list[int]) -> ScheduleNode | None:
    """Link r of each layer into a chain of steps."""
    step = None
    for index in reversed(range(len(listed))):
        step = ScheduleNode(listed[index], step, index)
    return step


class TokenCounts:
    """The token count after a block, linked by ``before`` to the counts after the earlier blocks.

    It is linked for the same reason as :class:`ScheduleNode`. ``blocks`` counts the blocks that have run.
    """

    def __init__(self, tokens: int, before: TokenCounts | None) -> None:
        self.tokens = tokens
        self.before = before
        self.blocks: int = 1 if before is None else before.blocks + 1


class PassSettings:
    """How a state begins; attached to the input of the first block for a recomputation.

    Args:
        step: the schedule, from the first block on.
        keep_all: whether each block returns all tokens, for readers of intermediate layers.
    """

    def __init__(self, step: ScheduleNode | None, keep_all: bool) -> None:
        self.step = step
        self.keep_all = keep_all

    def same(self, other: PassSettings) -> bool:
        """Whether both begin a pass in the same way."""
        return self.keep_all == other.keep_all and unlink_schedule(self.step) == unlink_schedule(
            other.step
        )


class ForwardInfo:
    """The input of the first block in one forward pass.

    All blocks of the pass share this object. It holds the values that a compiled block must not depend on.

    Args:
        num_tokens: N0.
        batch: B, to build sizes that are read before anything has merged.
        device: device of the activations, for the same purpose.
        number: number of the forward pass, counting up; -1 for a recomputation in backward.
        keep_all: whether each block returns all N0 tokens, for readers of intermediate layers.
    """

    def __init__(
        self, *, num_tokens: int, batch: Any, device: Any, number: int, keep_all: bool
    ) -> None:
        self.num_tokens = num_tokens
        self.batch = batch
        self.device = device
        self.number = number
        self.keep_all = keep_all


class MergeHistory:
    """The merges of a pass, last first: where its tokens went.

    They are composed on demand, which ``restore=False`` does not need, unless the composition is ``known``.
    """

    def __init__(
        self, plan: MergePlan, before: MergeHistory | None, known: Index | None = None
    ) -> None:
        #: whether sizes differ from counts of original tokens
        self.weighted: bool = plan.size_weight is not None or (
            before is not None and before.weighted
        )
        self.plan: MergePlan | None = plan if known is None else None
        self.before = before if known is None else None
        self.known = known

    def source(self) -> Index:
        """Return (B, N0) int, original token -> slot."""
        if self.known is None:
            self.known = compose_history(self.plan, self.before)  # type: ignore[arg-type]
            self.plan = self.before = None
        return self.known


def compose_history(plan: MergePlan, before: MergeHistory | None) -> Index:
    """Return (B, N0) int, original token -> slot of ``plan``."""
    if before is None:
        return plan.slots
    source = before.known
    if source is None:
        source = compose_history(before.plan, before.before)  # type: ignore[arg-type]
    return plan.backend.xp.take_along_axis(plan.slots, source, axis=1)


class TokenState:
    """The state of one forward pass between two blocks. It is immutable.

    Args:
        info: the input of the first block.
        step: the schedule from the next block on; None after the last block.
        width: n, the number of tokens left.
        count: token counts after the blocks so far.
        sizes: (B, n) float32; None until something has merged, so that no values need to be read.
        history: where the original tokens went; None until something has merged.
        representatives: (B, n) int, slot -> one original token in it; only if ``keep_all``.
        valid: (B, N0) float32, 1 for tokens and 0 for padding; None without padding.
        bias: (B, 1, 1, n), log sizes in the dtype of the activations, if the fused kernels computed them.
    """

    def __init__(
        self,
        info: ForwardInfo,
        step: ScheduleNode | None,
        width: int,
        count: TokenCounts | None = None,
        sizes: Sizes | None = None,
        history: MergeHistory | None = None,
        representatives: Index | None = None,
        valid: Sizes | None = None,
        bias: Bias | None = None,
    ) -> None:
        self.info = info
        self.step = step
        self.width = width
        self.count = count
        self.sizes = sizes
        self.history = history
        self.representatives = representatives
        self.valid = valid
        self.bias = bias

    @property
    def num_tokens(self) -> int:
        """N0, the number of tokens that entered the first block."""
        return self.info.num_tokens

    @property
    def source(self) -> Index | None:
        """(B, N0) int, original token -> slot; None until something has merged."""
        return None if self.history is None else self.history.source()

    @property
    def keep_all(self) -> bool:
        """Whether each block returns all N0 tokens."""
        return self.info.keep_all

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
        return self.history is not None and not self.keep_all and self.step is not None

    @property
    def progress(self) -> tuple[int, int]:
        """Key for comparison: later passes, and later blocks of a pass, compare greater."""
        return self.info.number, self.blocks

    def at(self, index: int) -> TokenState | None:
        """Return the state before block ``index``, skipping blocks in between; None if that block has run."""
        step, count = self.step, self.count
        while step is not None and step.index < index:
            step, count = step.next, TokenCounts(self.width, count)
        if step is None or step.index != index:
            return None
        if step is self.step:
            return self
        return TokenState(
            self.info,
            step,
            self.width,
            count,
            sizes=self.sizes,
            history=self.history,
            representatives=self.representatives,
            valid=self.valid,
            bias=self.bias,
        )

    def fits(self, samples: Any, tokens: Any, tracing: bool) -> bool:
        """Whether these are all samples and tokens of the state, not only a part of them."""
        expected = self.num_tokens if self.keep_all else self.width
        # While a graph is traced, the batch size may be a symbol.
        return bool(tokens == expected and (tracing or samples == self.info.batch))

    def with_padding(self, valid: Sizes) -> TokenState:
        """Return the state with padding, as tokens of size 0."""
        return TokenState(
            self.info,
            self.step,
            self.width,
            self.count,
            sizes=valid,
            history=self.history,
            representatives=self.representatives,
            valid=valid,
        )

    def after_merge(
        self,
        sizes: Sizes,
        history: MergeHistory,
        representatives: Index | None,
        bias: Bias | None = None,
    ) -> TokenState:
        """Return the state after the merge of a block, before the end of the block."""
        return TokenState(
            self.info,
            self.step,
            self.width,
            self.count,
            sizes=sizes,
            history=history,
            representatives=representatives,
            valid=self.valid,
            bias=bias,
        )

    def after(self, tokens: int) -> TokenState:
        """Return the state one block later, with ``tokens`` tokens left."""
        return TokenState(
            self.info,
            None if self.step is None else self.step.next,
            tokens,
            TokenCounts(tokens, self.count),
            sizes=self.sizes,
            history=self.history,
            representatives=self.representatives,
            valid=self.valid,
            bias=self.bias,
        )


class Attachment:
    """The payload attached to a tensor: a value, and the config of the model that attached it.

    Pickled and copied tensors lose it: it becomes an empty set, which loaders of weights-only files accept.
    """

    def __init__(self, config: object, value: Any) -> None:
        self.config = config
        self.value = value

    def __reduce__(self) -> tuple[type[set[Any]], tuple[()]]:
        return set, ()


def attached_value(rider: object, config: object) -> Any:
    """Return the value of ``rider`` if it belongs to ``config``; else None."""
    return rider.value if isinstance(rider, Attachment) and rider.config is config else None


class ThreadSlot(Generic[T]):
    """One value per thread; copies and pickles are empty.

    While a graph is traced (``tracing``), the value is a plain attribute: tracers do not support thread-local
    storage, and only one thread traces.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._traced: T | None = None

    def mark(self, value: T) -> None:
        """Set the value of this thread even while a graph is traced, so that running the graph sets it.

        ``value`` must be a module-level constant or a number.
        """
        self._local.value = value

    def get(self, tracing: bool) -> T | None:
        """Return the value of this thread; None if there is none."""
        return self._traced if tracing else getattr(self._local, "value", None)

    def set(self, value: T | None, tracing: bool) -> None:
        """Set the value of this thread."""
        if tracing:
            self._traced = value
        else:
            self._local.value = value

    def __reduce__(self) -> tuple[type[ThreadSlot[T]], tuple[()]]:
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
        """Whether a context of this thread has switched it on."""
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
        """End the context that :meth:`enter` returned ``token`` for."""
        if tracing:
            self._traced = token
            return
        entered, key = token
        entered.pop(key, None)

    def __reduce__(self) -> tuple[type[Switch], tuple[()]]:
        return Switch, ()
