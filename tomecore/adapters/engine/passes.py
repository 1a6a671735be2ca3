"""Hold the state of the forward passes of a patched model: the current, the last, and those in backward.

This file holds data only: ``calls.py`` follows the calls of the model, ``progress.py`` the blocks, and
``recompute.py`` the recomputation in backward.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.state import PassSettings, ThreadSlot, TokenState, unlink_schedule
from tomecore.errors import LostStateError

__all__ = ["TRACED", "UNREACHED", "Call", "Outcome", "Outstanding", "Passes"]

_AMBIGUOUS = (
    "the same {what} went through forward passes with different values of r, and a checkpointed region "
    "cannot tell which of them its backward pass belongs to. Use a separate tensor for each forward pass (a "
    "clone, for example), checkpoint the blocks or the model itself, or call backward() before r changes."
)


#: number of starts that are kept for passes without a backward pass
_MOST_STARTS = 64


class Call:
    """The outermost call of a method of the tower or the model in this thread.

    Args:
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        #: the state after the block that ran last; None before the first block
        self.state: TokenState | None = None
        #: states with merged tokens whose last block has not run yet, by the id of their info
        self.open: dict[int, TokenState] = {}
        #: shapes of the outputs of the patch embedding in the latest pass
        self.shapes: tuple[tuple[int, ...], ...] | None = None
        #: index of the block that is running; still set after an error inside it
        self.inside: int | None = None

    def arrays(self, array_class: type) -> list[Any]:
        """Return the arrays among the arguments, including those in lists and dictionaries."""
        found = []
        for value in (*self.args, *self.kwargs.values()):
            inside = value.values() if isinstance(value, dict) else value
            several = inside if isinstance(value, list | tuple | dict) else (value,)
            found += [one for one in several if isinstance(one, array_class)]
        return found


class Outcome:
    """The outcome of the last forward pass of a thread.

    Args:
        state: the state after its last block; None if there are no results.
        problem: the reason why there are no results, for a message; None if there are.
        returned: whether the call of the model has returned; False for blocks called by hand.
    """

    def __init__(
        self, state: TokenState | None, problem: str | None = None, returned: bool = False
    ) -> None:
        self.state = state
        self.problem = problem
        self.returned = returned


#: the last forward pass ran as a compiled or exported graph
TRACED = Outcome(
    None,
    "the last forward pass ran as a compiled or exported graph, which keeps no results; call the model "
    "without compiling it to get them",
)
#: the last call of the model ran no patched block
UNREACHED = Outcome(
    None,
    "the last call of the model ran none of its patched blocks (they have forwards of their own, or the "
    "model ran as a graph that was traced earlier), so there are no results",
)


class Outstanding:
    """Forward passes in checkpointed regions that backward has not recomputed yet, counted by their start."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, ...], int] = {}
        self._starts: dict[tuple[int, ...], PassSettings] = {}

    def add(self, num_tokens: int, start: PassSettings) -> None:
        """Record a pass of ``num_tokens`` tokens that began with ``start``."""
        key = _key(num_tokens, start)
        done = [k for k, count in self._counts.items() if count == 0]
        oldest = list(self._counts)[: max(0, len(self._counts) - _MOST_STARTS)]
        for other in {*done, *oldest}:
            del self._counts[other], self._starts[other]
        self._counts[key] = self._counts.get(key, 0) + 1
        self._starts[key] = start

    def take(self, num_tokens: int, what: str) -> PassSettings | None:
        """Return the start of the pass of ``num_tokens`` tokens that is recomputed now; None if unknown.

        Raises:
            LostStateError: passes with as many tokens and different starts are outstanding.
        """
        mine = [key for key in self._counts if key[0] == num_tokens]
        waiting = [key for key in mine if self._counts[key]] or mine  # backward may run twice
        if not waiting:
            return None
        if len(waiting) > 1:
            raise LostStateError(_AMBIGUOUS.format(what=what))
        self._counts[waiting[0]] = max(0, self._counts[waiting[0]] - 1)
        return self._starts[waiting[0]]

    def discharge(self, num_tokens: int, start: PassSettings) -> None:
        """Record that a pass is recomputed whose start is known from elsewhere."""
        key = _key(num_tokens, start)
        if self._counts.get(key, 0) > 0:
            self._counts[key] -= 1

    def __reduce__(self) -> tuple[type[Outstanding], tuple[()]]:
        return Outstanding, ()


def _key(num_tokens: int, start: PassSettings) -> tuple[int, ...]:
    return num_tokens, int(start.keep_all), *unlink_schedule(start.step)


class Passes:
    """State of the forward passes of one patched tower; a copy of the model starts with an empty one."""

    def __init__(self) -> None:
        #: the outcome of the last forward pass of each thread
        self.outcome: ThreadSlot[Outcome] = ThreadSlot()
        #: the current call of the model in each thread
        self.call: ThreadSlot[Call] = ThreadSlot()
        #: whether the patched forward of the last called block has run
        self.reached: ThreadSlot[bool] = ThreadSlot()
        #: whether compiled blocks have merged tokens that the last block has not restored yet
        self.open: ThreadSlot[bool] = ThreadSlot()
        #: whether a compiled last block has run in the current call
        self.closed: ThreadSlot[bool] = ThreadSlot()
        #: shapes of the outputs of the patch embedding since the last pass began; None if it did not run
        self.patches: ThreadSlot[tuple[tuple[int, ...], ...]] = ThreadSlot()
        #: passes in checkpointed regions that backward has not recomputed yet
        self.outstanding = Outstanding()
        #: number of tokens -> start of the last pass with as many
        self.begun: dict[int, PassSettings] = {}

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()
