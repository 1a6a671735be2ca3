"""What is known of the forward passes of a patched model: of the one that runs, the last and those before
backward.

Only data: ``_calls`` follows the calls of the model, ``_progress`` the blocks, ``_recompute`` what backward
computes again.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.state import Run, Start, ThreadSlot, amounts
from tomecore.errors import LostStateError

__all__ = ["TRACED", "UNREACHED", "Call", "Outcome", "Outstanding", "Passes"]

_AMBIGUOUS = (
    "the same {what} went through forward passes under different values of r, and a checkpointed region "
    "cannot "
    "tell which of them its backward pass belongs to. Give each forward pass a tensor of its own (a "
    "clone, for "
    "example), checkpoint the blocks or the model itself, or call backward() before r changes."
)


#: beginnings that are kept of passes that no backward pass has come for
_MOST_STARTS = 64


class Call:
    """The outermost call, in this thread, of a method of the tower or the model.

    Args:
        args: what it was called with, by position,
        kwargs: and by name.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        #: what the last block that was reached handed on; None until a block is
        self.run: Run | None = None
        #: runs with merged tokens whose last block is to come, by the identity of their entry
        self.open: dict[int, Run] = {}
        #: shapes of what the patch embedding computed for the pass that began last
        self.shapes: tuple[tuple[int, ...], ...] | None = None
        #: which block is running; still set after an error inside it
        self.inside: int | None = None

    def arrays(self, array_class: type) -> list[Any]:
        """The arrays it was called with, those in lists and dictionaries too."""
        found = []
        for value in (*self.args, *self.kwargs.values()):
            inside = value.values() if isinstance(value, dict) else value
            several = inside if isinstance(value, list | tuple | dict) else (value,)
            found += [one for one in several if isinstance(one, array_class)]
        return found


class Outcome:
    """How the last forward pass of a thread ended.

    Args:
        run: what its last block handed on; None where there is nothing to show.
        problem: why there is nothing to show, for a message; None if there is.
        returned: whether the call of the model has returned; False for blocks called by hand.
    """

    def __init__(self, run: Run | None, problem: str | None = None, returned: bool = False) -> None:
        self.run = run
        self.problem = problem
        self.returned = returned


#: the last forward pass ran as a compiled or exported graph
TRACED = Outcome(
    None,
    "the last forward pass ran as a compiled or exported graph, which keeps no results; call the model "
    "without compiling to inspect it",
)
#: the last call of the model ran no patched block
UNREACHED = Outcome(
    None,
    "the last call of the model ran none of its patched blocks (they have forwards of their own, or the "
    "model "
    "ran as a graph that was made earlier), so there are no results",
)


class Outstanding:
    """Forward passes inside checkpointed regions that backward has not recomputed yet, by how they began."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, ...], int] = {}
        self._starts: dict[tuple[int, ...], Start] = {}

    def add(self, num_tokens: int, start: Start) -> None:
        """Note a pass of ``num_tokens`` tokens that began as ``start``."""
        key = _key(num_tokens, start)
        done = [k for k, count in self._counts.items() if count == 0]
        oldest = list(self._counts)[: max(0, len(self._counts) - _MOST_STARTS)]
        for other in {*done, *oldest}:
            del self._counts[other], self._starts[other]
        self._counts[key] = self._counts.get(key, 0) + 1
        self._starts[key] = start

    def take(self, num_tokens: int, what: str) -> Start | None:
        """How the pass of ``num_tokens`` tokens began that is recomputed now; None if none was noted.

        Raises:
            LostStateError: passes of that many tokens that began otherwise are outstanding too.
        """
        mine = [key for key in self._counts if key[0] == num_tokens]
        waiting = [key for key in mine if self._counts[key]] or mine  # backward may come twice
        if not waiting:
            return None
        if len(waiting) > 1:
            raise LostStateError(_AMBIGUOUS.format(what=what))
        self._counts[waiting[0]] = max(0, self._counts[waiting[0]] - 1)
        return self._starts[waiting[0]]

    def discharge(self, num_tokens: int, start: Start) -> None:
        """Note that a pass is recomputed whose beginning is known otherwise."""
        key = _key(num_tokens, start)
        if self._counts.get(key, 0) > 0:
            self._counts[key] -= 1

    def __reduce__(self) -> tuple[type[Outstanding], tuple[()]]:
        return Outstanding, ()


def _key(num_tokens: int, start: Start) -> tuple[int, ...]:
    return num_tokens, int(start.every), *amounts(start.step)


class Passes:
    """State of the forward passes of one patched tower; a copy of the model begins without any."""

    def __init__(self) -> None:
        #: how the last forward pass of each thread ended
        self.outcome = ThreadSlot()
        #: the call of the model that is under way in each thread
        self.call = ThreadSlot()
        #: whether the patched forward of the block that was called last has run
        self.reached = ThreadSlot()
        #: whether compiled blocks have handed on merged tokens and the last, which restores, has not run
        self.open = ThreadSlot()
        #: whether a compiled last block has run in the call that is under way
        self.closed = ThreadSlot()
        #: shapes of what the patch embedding computed since the last pass began; None if it did not run
        self.patches = ThreadSlot()
        #: passes in checkpointed regions that were not recomputed yet
        self.outstanding = Outstanding()
        #: how the last pass of each number of tokens began
        self.begun: dict[int, Start] = {}

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()
