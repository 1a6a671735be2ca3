"""The core without a model, on every array library here: matching, merging and unmerging, from 197 to 1025
tokens; and matching and merging together with the compiled kernels, if a library has them.

    python benchmarks/core.py --json benchmarks/results/core-cpu.json

Each time is also divided by the units of its arithmetic: pairs of tokens times channels for matching, and
numbers of x for merging, unmerging and the kernels. If that quotient stays level, no time grows faster than
the arithmetic. The control is x + 1, which reads x once and writes new memory: the largest arrays (1025 x
1280, 42 MB) are allocated as pages that must first be mapped. On a shared machine only ratios within a run
are meaningful.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tomecore as tc
from tomecore.backends import Keys, backend_of
from tomecore.benchmark import interleave, machine

BATCH, HEAD = 8, 64
TOKENS = (197, 577, 1025)
WIDTHS = (192, 384, 768, 1280)


def libraries() -> dict[str, Callable[[np.ndarray], Any]]:
    """Return name -> function from NumPy to an array of that library."""
    found: dict[str, Callable[[np.ndarray], Any]] = {"numpy": np.asarray}
    if importlib.util.find_spec("torch"):
        import torch

        found["torch"] = torch.from_numpy
    if importlib.util.find_spec("paddle"):
        import paddle

        found["paddle"] = paddle.to_tensor
    if importlib.util.find_spec("jax"):
        import jax.numpy

        found["jax"] = jax.numpy.asarray
    return found


def wait_for(x: Any) -> Any:
    """Wait for results: JAX computes asynchronously."""
    return x.block_until_ready() if hasattr(x, "block_until_ready") else x


def calls_of(to_array: Callable[[np.ndarray], Any], tokens: int, width: int) -> dict[str, Any]:
    """Return the operations; about a twelfth of the tokens merge, as for r=16 of 197."""
    generator = np.random.default_rng(0)
    r = tokens // 12
    keys = to_array(generator.standard_normal((BATCH, tokens, HEAD)).astype(np.float32))
    x = to_array(generator.standard_normal((BATCH, tokens, width)).astype(np.float32))
    sizes = to_array(np.ones((BATCH, tokens), dtype=np.float32))
    plan = tc.bipartite_soft_matching(keys, r, protected=1)
    merged, _ = tc.merge_weighted(plan, x, sizes)
    calls = {
        "match": lambda: wait_for(tc.bipartite_soft_matching(keys, r, protected=1).kept),
        "merge": lambda: wait_for(tc.merge_weighted(plan, x, sizes)[0]),
        "unmerge": lambda: wait_for(plan.unmerge(merged)),
        "x + 1": lambda: wait_for(x + 1),
    }
    fused = functools.partial(backend_of(x).fused, Keys(keys, None, 1), x, sizes, None, r, 1)
    if fused() is not None:
        calls["in one go"] = fused
    return calls


def measure(name: str, tokens: int, width: int, rounds: int) -> dict[str, Any]:
    calls = calls_of(libraries()[name], tokens, width)
    timed = list(interleave(calls, rounds))
    seconds = {call: statistics.median(one[call] for one in timed) for call in calls}
    work = {
        "match": BATCH * tokens * tokens / 4 * HEAD,
        "merge": BATCH * tokens * width,
        "unmerge": BATCH * tokens * width,
        "x + 1": BATCH * tokens * width,
        "in one go": BATCH * tokens * (tokens / 4 * HEAD + width),
    }
    return {
        "library": name,
        "tokens": tokens,
        "width": width,
        "milliseconds": {call: 1e3 * value for call, value in seconds.items()},
        "nanoseconds_per_unit": {call: 1e9 * seconds[call] / work[call] for call in calls},
    }


def line(cell: dict[str, Any]) -> str:
    parts = [f"{cell['library']:7s}{cell['tokens']:5d}{cell['width']:6d}"]
    for call, value in cell["milliseconds"].items():
        parts.append(f"{value:9.2f} ms {cell['nanoseconds_per_unit'][call]:7.3f} ns")
    return "  ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = ("match", "merge", "unmerge", "x + 1", "in one go")
    print("library    N     C  " + "  ".join(f"{name:>22s}" for name in names))
    cells = []
    for name in libraries():
        for tokens in TOKENS:
            for width in WIDTHS:
                cells.append(measure(name, tokens, width, arguments.rounds))
                print(line(cells[-1]), flush=True)
    if arguments.json:
        text = json.dumps({"machine": machine(), "cells": cells}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
