"""Matching of many tokens within a partition: time, and memory beyond the keys. It runs on Linux.

    python benchmarks/many_tokens.py --json benchmarks/results/many-tokens-cpu.json

The number of destinations is fixed, so the time should grow as the number of sources does, and memory should
not grow. Time is the CPU's, which other processes disturb less. Memory is the peak of the resident set during
the call, minus the resident set before it, when the keys already exist.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import tomecore as tc
from tomecore.benchmark import machine

WIDTH, DESTINATIONS = 1024, 25_000
SOURCES = (10_000, 20_000, 75_000)
LIBRARIES = ("numpy", "torch")


def measure(library: str, sources: int, destinations: int, width: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    tokens = sources + destinations
    keys = generator.standard_normal((1, tokens, width), dtype=np.float32)
    if library == "torch":
        import torch

        keys = torch.from_numpy(keys)
    numbers = generator.permutation(tokens)
    partition = np.sort(numbers[:sources]), np.sort(numbers[sources:])
    tc.partition_matching(keys[:, :8], np.arange(4), np.arange(4, 8))  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = resident("VmRSS")
    start = time.process_time()
    tc.partition_matching(keys, *partition)
    seconds = time.process_time() - start
    return {
        "library": library,
        "tokens": tokens,
        "sources": sources,
        "destinations": destinations,
        "width": width,
        "cpu_seconds": seconds,
        "megabytes": resident("VmHWM") - before,
        "megabytes_of_keys": tokens * width * 4 / 1e6,
    }


def resident(name: str) -> float:
    """Megabytes of memory of this process: now ("VmRSS"), or at the peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (one for one in lines if one.startswith(name + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=int, nargs="+", default=SOURCES)
    parser.add_argument("--destinations", type=int, default=DESTINATIONS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    cells = []
    print("library    sources  destinations    CPU s   MB  MB of keys")
    for library in LIBRARIES:
        for sources in args.sources:
            cell = measure(library, sources, args.destinations, args.width)
            cells.append(cell)
            print(
                f"{library:7s}{sources:11d}{args.destinations:14d}{cell['cpu_seconds']:9.2f}"
                f"{cell['megabytes']:5.0f}{cell['megabytes_of_keys']:12.0f}",
                flush=True,
            )
    if args.json:
        text = json.dumps({"machine": machine(), "cells": cells}, indent=1)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
