"""The processes that share one run: the number of this one, its share, and the results of all.

``torchrun`` and ``python -m paddle.distributed.launch`` set environment variables in which each process
finds its number. The processes exchange little: counts, times, names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tomecore.errors import ArgumentValueError, TomeError
from tomecore.frameworks import RUNTIMES, Runtime

__all__ = ["ALONE", "Processes", "join", "local_rank"]


@dataclass(frozen=True)
class Processes:
    """One of several processes that run the same command.

    Args:
        rank: number of this process, from 0.
        world: number of processes.
        gather: ``gather(value)`` returns the values of all processes, by rank, in each of them. Every
            process must call it.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of ``count`` things belong to this process; each belongs to exactly one."""
        return range(self.rank, count, self.world)


#: a run of one process
ALONE = Processes()


@contextlib.contextmanager
def join(framework: str) -> Iterator[Processes]:
    """Join the other processes if a launcher has started several; yield :data:`ALONE` if not.

    A process group that the caller has set up is used and kept; one that is set up here is destroyed at
    the end.

    Args:
        framework: "torch" or "paddle"; its own launcher must have started the processes.

    Raises:
        TomeError: the other framework's launcher has started several processes.
        ArgumentValueError: the launcher's variables are not valid.
    """
    runtime = RUNTIMES[framework]
    world, rank = _world_and_rank(runtime)
    if world > 1:
        with runtime.gathering() as gather:
            yield Processes(rank, world, gather)
        return
    for other in RUNTIMES.values():
        started, _ = _world_and_rank(other)
        if started > 1:
            raise TomeError(
                f"{other.launcher} has started {started} processes of a {framework} model; start them "
                f"with {runtime.launcher}"
            )
    yield ALONE


def local_rank(framework: str) -> int:
    """Return the number of this process on its machine, which is also that of its accelerator."""
    *_, name = RUNTIMES[framework].variables
    return int(os.environ.get(name, "0"))


def _world_and_rank(runtime: Runtime) -> tuple[int, int]:
    """Return (world, rank) from the variables of a framework's launcher; (1, 0) if they are not set."""
    names = runtime.variables[:2]
    if any(name not in os.environ for name in names):
        return 1, 0
    found = " and ".join(f"{name}={os.environ[name]!r}" for name in names)
    try:
        world, rank = (int(os.environ[name]) for name in names)
    except ValueError:
        raise ArgumentValueError(
            f"the environment has {found}; both must be whole numbers. Unset them, or start with "
            f"{runtime.launcher}, which sets them."
        ) from None
    if not 0 <= rank < world:
        raise ArgumentValueError(
            f"the environment has {found}; the second must be from 0 to below the first"
        )
    return world, rank
