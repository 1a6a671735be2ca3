"""The code of one process of two; ``test_training.py`` starts both and compares what they save.

python -m paddle_production.distributed FOLDER
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist
from adapters.cases import Case
from paddle.distributed.fleet.utils import recompute
from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

from paddle_production.models import CLAS, OWN_PLAIN
from tomecore.adapters import paddle as tome
from tomecore.errors import UnsupportedModelError

PROCESSES = 2
BATCH = 4
R = 8
CASES = [OWN_PLAIN, CLAS]


def images(case: Case) -> np.ndarray:
    return case.images(BATCH)


def part(case: Case, parts: int, index: int) -> Any:
    return case.fw.tensor(np.split(images(case), parts)[index])


def outcome(model: Any, called: Any, inputs: list[Any]) -> dict[str, np.ndarray]:
    """Outputs one after another, and the gradients of the sum of all losses so far."""
    model.train()
    outputs = []
    for x in inputs:
        outputs.append(called(x))
        (outputs[-1] ** 2).sum().backward()
    return results(model, outputs)


def results(model: Any, outputs: list[Any]) -> dict[str, np.ndarray]:
    found = {"output": np.concatenate([output.numpy() for output in outputs])}
    found["tokens"] = np.asarray(model.tome.tokens)
    return found | gradients(model)


def gradients(model: Any) -> dict[str, np.ndarray]:
    return {f"gradient {n}": p.grad.numpy() for n, p in model.named_parameters()}


def patched_before(case: Case, rank: int) -> dict[str, np.ndarray]:
    model = case.patched(r=R)
    return outcome(model, paddle.DataParallel(model), [part(case, PROCESSES, rank)])


def patched_after(case: Case, rank: int) -> dict[str, np.ndarray]:
    wrapped = paddle.DataParallel(case.model())
    try:
        tome.apply_patch(wrapped, r=R)
        raise RuntimeError("a wrapper was patched")
    except UnsupportedModelError:
        model = tome.apply_patch(wrapped._layers, r=R)
    return outcome(model, wrapped, [part(case, PROCESSES, rank)])


def r_changed(case: Case, rank: int) -> dict[str, np.ndarray]:
    """The reducer has run before, under another r."""
    model = case.patched(r=2)
    wrapped, x = paddle.DataParallel(model), part(case, PROCESSES, rank)
    outcome(model, wrapped, [x])
    case.fw.clear_gradients(model)
    model.r = R
    return outcome(model, wrapped, [x])


def accumulated(case: Case, rank: int) -> dict[str, np.ndarray]:
    """Two steps of one image and one exchange: the first step is within ``no_sync``."""
    model = case.patched(r=R)
    wrapped = paddle.DataParallel(model)
    first, second = (part(case, BATCH, 2 * rank + step) for step in range(2))
    with wrapped.no_sync():
        before = outcome(model, wrapped, [first])
    found = outcome(model, wrapped, [second])
    return found | {"output": np.concatenate([before["output"], found["output"]])}


class Recomputed:
    """A block's forward, in a region of its own."""

    def __init__(self, block: Any) -> None:
        self.inner = block.forward

    def __call__(self, x: Any) -> Any:
        return recompute(self.inner, x)


def recomputed(case: Case, rank: int) -> dict[str, np.ndarray]:
    """Reentrant; the exchange comes afterwards, as Paddle's documentation of recompute has it."""
    model = case.patched(r=R)
    for block in model.blocks:
        block.forward = Recomputed(block)
    wrapped = paddle.DataParallel(model)
    with wrapped.no_sync():
        found = outcome(model, wrapped, [part(case, PROCESSES, rank)])
    fused_allreduce_gradients(list(model.parameters()), None)
    return found | gradients(model)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (patched_before, patched_after, r_changed, accumulated, recomputed)
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def start(folder: Path) -> list[dict[str, Any]]:
    """Run both processes to their end; what each one saved."""
    ports = free_ports(PROCESSES + 1)
    endpoints = [f"127.0.0.1:{port}" for port in ports[:PROCESSES]]
    here = Path(__file__).parents[1]
    paths = os.pathsep.join(str(path) for path in (here, here.parent, *sys.path) if path)
    processes = []
    for rank in range(PROCESSES):
        environment = {
            "PATH": "",
            "HOME": str(folder),
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "PADDLE_DISTRI_BACKEND": "gloo",
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(PROCESSES),
            "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
            "PADDLE_MASTER": f"127.0.0.1:{ports[-1]}",
        }
        command = [sys.executable, "-m", "paddle_production.distributed", str(folder)]
        with (folder / f"log{rank}").open("w") as log:  # the process keeps its own handle of it
            processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"log{rank}").read_text()[-2000:] for rank in range(PROCESSES)]
    if any(codes):
        raise RuntimeError("\n".join(logs))
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(PROCESSES)]


def main(folder: Path) -> None:
    dist.init_parallel_env()
    rank, found = dist.get_rank(), {}
    for case in CASES:
        for name, scenario in SCENARIOS.items():
            for key, array in scenario(case, rank).items():
                found[f"{case.name}/{name}/{key}"] = array
    found["processes"] = np.asarray(dist.get_world_size())
    np.savez(folder / f"{rank}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
