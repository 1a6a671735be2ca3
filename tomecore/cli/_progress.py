"""Progress on stderr: a line that changes on a terminal; elsewhere a few lines, if a command takes long."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tomecore.cli._output import errors

__all__ = ["Step", "prepare_kernels", "progress_bar", "steps"]

#: called with the text of the step that begins
Step = Callable[[str], None]

#: seconds without a terminal after which the running step is printed; the time is doubled after each line
_FIRST = 2.0
#: how often a terminal is refreshed in a second: seldom, because commands measure times meanwhile
_REFRESH = 4


class _Bar(Progress):
    """Progress that prints lines if stderr is not a terminal: after 2 seconds, then 4, 8, 16 and so on."""

    def __init__(self, *columns: Any) -> None:
        shown = errors.on_terminal
        super().__init__(
            *columns,
            console=errors,
            transient=True,
            refresh_per_second=_REFRESH,
            disable=not shown,
        )
        self._ended = threading.Event()
        self._printer = None if shown else threading.Thread(target=self._print, daemon=True)

    def start(self) -> None:
        """Start to show or to print progress."""
        super().start()
        if self._printer is not None:
            self._printer.start()

    def stop(self) -> None:
        """Stop it; nothing is printed afterwards."""
        super().stop()
        self._ended.set()
        if self._printer is not None and self._printer.is_alive():
            self._printer.join()

    def _print(self) -> None:
        start, wait = time.monotonic(), _FIRST
        while not self._ended.wait(wait):
            elapsed = time.monotonic() - start
            for task in self.tasks:
                count = "" if task.total is None else f" ({task.completed:g} of {task.total:g})"
                errors.print(
                    f"{task.description}{count} ({elapsed:.0f} s)", highlight=False, soft_wrap=True
                )
            wait = elapsed  # so that the time since the start doubles


def progress_bar() -> Progress:
    """Return a bar of the steps done and the running one, on stderr; it disappears at the end."""
    return _Bar(
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    )


@contextlib.contextmanager
def steps(first: str) -> Iterator[Step]:
    """Yield a function that shows what a command does now, and since when; ``first``: its first step."""
    with _Bar(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        task = bar.add_task(escape(first), total=None)
        yield lambda text: bar.update(task, description=escape(text))


def prepare_kernels(step: Step, device: str | None, dtype: str = "float32") -> None:
    """Load the kernels for a CPU before they are needed; the first time, they are compiled for seconds.

    Args:
        step: shows what is done.
        device: where the model runs; None: unknown.
        dtype: dtype of the tokens.
    """
    from tomecore.backends.kernels import prepare

    if (device or "cpu").startswith("cpu"):
        step("loading the kernels (compiled once, when they are first used)")
        prepare(dtype)
