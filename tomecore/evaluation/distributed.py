"""The processes that one run is spread over: who this one is, its share, and what all of them found.

``torchrun`` and ``python -m paddle.distributed.launch`` tell each process who it is by environment
variables. What the processes have to tell each other is small (counts, times, names), so it goes through
the framework's own ``all_reduce`` of integers, which is exact.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError, TomeError

__all__ = ["ALONE", "Processes", "join", "local_rank"]

#: framework -> (number of processes, number of this one), as its launcher names them
_VARIABLES = {
    "torch": ("WORLD_SIZE", "RANK"),
    "paddle": ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID"),
}
_LAUNCHERS = {"torch": "torchrun", "paddle": "python -m paddle.distributed.launch"}


@dataclass(frozen=True)
class Processes:
    """One of several processes that run the same command.

    Args:
        rank: number of this process, from 0.
        world: how many there are.
        total: the sum of an int64 array over all processes, in all of them.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[np.ndarray], np.ndarray] = lambda array: array

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process' own; nothing is in two shares or in none."""
        return range(self.rank, count, self.world)

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank, in all of them. Every process must call this.

        Args:
            value: anything that JSON can hold.
        """
        text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        lengths = np.zeros(self.world, dtype=np.int64)
        lengths[self.rank] = len(text)
        lengths = self.total(lengths)
        table = np.zeros((self.world, int(lengths.max())), dtype=np.int64)
        table[self.rank, : len(text)] = text
        table = self.total(table)
        return [
            json.loads(row[:length].astype(np.uint8).tobytes())
            for row, length in zip(table, lengths, strict=True)
        ]


#: a run of one process
ALONE = Processes()


@contextlib.contextmanager
def join(framework: str) -> Iterator[Processes]:
    """Join the other processes if a launcher has started several; :data:`ALONE` if it has not.

    A process group that the caller has set up is used and left as it is; one that this sets up is
    taken down at the end.

    Args:
        framework: "torch" or "paddle"; its own launcher must have started the processes.

    Raises:
        TomeError: the other framework's launcher has started several processes.
        ArgumentValueError: the launcher's variables make no sense.
    """
    world, rank = _place_in(framework)
    if world == 1:
        other = next(name for name in _VARIABLES if name != framework)
        if _place_in(other)[0] > 1:
            raise TomeError(
                f"{_LAUNCHERS[other]} has started {_place_in(other)[0]} processes of a {framework} "
                f"model; start them with {_LAUNCHERS[framework]}"
            )
        yield ALONE
    elif framework == "torch":
        with _torch_total() as total:
            yield Processes(rank, world, total)
    else:
        yield Processes(rank, world, _paddle_total())


def local_rank(framework: str) -> int:
    """Number of this process on its machine: which accelerator is its own."""
    name = {"torch": "LOCAL_RANK", "paddle": "PADDLE_LOCAL_RANK"}[framework]
    return int(os.environ.get(name, "0"))


def _place_in(framework: str) -> tuple[int, int]:
    names = _VARIABLES[framework]
    if any(name not in os.environ for name in names):
        return 1, 0
    found = " and ".join(f"{name}={os.environ[name]!r}" for name in names)
    try:
        world, rank = (int(os.environ[name]) for name in names)
    except ValueError:
        raise ArgumentValueError(
            f"the environment has {found}; both must be whole numbers"
        ) from None
    if not 0 <= rank < world:
        raise ArgumentValueError(
            f"the environment has {found}; the second must be from 0 to below the first"
        )
    return world, rank


@contextlib.contextmanager
def _torch_total() -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Sums over gloo, on the CPU, whatever the models run on."""
    import torch
    from torch import distributed

    ours = not distributed.is_initialized()
    if ours:
        distributed.init_process_group("gloo")
    group: Any = (
        None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
    )

    def total(array: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.array(array, dtype=np.int64))
        distributed.all_reduce(tensor, group=group)
        return tensor.numpy()

    try:
        yield total
    finally:
        if ours:
            distributed.destroy_process_group()


def _paddle_total() -> Callable[[np.ndarray], np.ndarray]:
    import paddle
    from paddle import distributed

    if not distributed.is_initialized():
        distributed.init_parallel_env()

    def total(array: np.ndarray) -> np.ndarray:
        tensor = paddle.to_tensor(np.array(array, dtype=np.int64))
        distributed.all_reduce(tensor)
        return np.asarray(tensor.numpy())

    return total
