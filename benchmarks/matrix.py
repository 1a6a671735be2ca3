"""The full matrix: every model, size, batch and r, with the unpatched model, both limits and the published
form of token merging. Each cell is one interleaved run.

    make bench                                     # the short matrix, under five minutes on two cores
    python benchmarks/matrix.py --full --json benchmarks/results/cpu.json
    python benchmarks/matrix.py --full --json benchmarks/results/cpu.json --rounds 11   # steadier
    python benchmarks/matrix.py --show benchmarks/results/cpu.json
    python benchmarks/matrix.py --show FILE --only "torch small 224 float32" --plot speed.png
    python benchmarks/matrix.py --show FILE --missed # cells that miss a target, and where their time goes

An existing file is resumed. Its cells are not measured again, unless they have fewer rounds than
``--rounds``; new numbers then replace the old ones, better or worse. Weights are random, which does not
change the speed. The targets: 93 % of free-drop in each cell, 97 % in the median; never slower than the
unpatched model, or than the published form.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from published_form import published_form
from speed_figure import draw as draw_figure

from tomecore import benchmark
from tomecore.errors import ClampWarning
from tomecore.frameworks import evaluating, to_tensor
from tomecore.loading import adapter_of, load

#: framework -> (the name of a model of a size, the dtypes it supports on a CPU)
FRAMEWORKS = {
    "torch": ("timm:vit_{}_patch16_224", ("float32", "bfloat16")),
    "paddle": ("paddle:{}", ("float32",)),
}
SIZES = ("tiny", "small", "base")
SCHEDULES = {224: (8, 13, 16), 384: (25, 50)}
BATCHES = (1, 8)

SHORT = [
    ("torch", "tiny", 224, 8, 16, "float32"),
    ("torch", "small", 224, 8, 8, "float32"),
    ("torch", "small", 224, 8, 16, "float32"),
    ("torch", "small", 224, 1, 16, "float32"),
    ("paddle", "small", 224, 8, 16, "float32"),
]
FULL = [
    (framework, size, side, batch, r, dtype)
    for framework, (_, dtypes) in FRAMEWORKS.items()
    for dtype, size, side, batch in product(dtypes, SIZES, SCHEDULES, BATCHES)
    for r in SCHEDULES[side]
]


def measure(cell: tuple[Any, ...], seconds: float, least: int) -> dict[str, Any]:
    """Measure one cell for about ``seconds``, and at least ``least`` rounds."""
    framework, size, side, batch, r, dtype = cell
    loaded = load(FRAMEWORKS[framework][0].format(size), resolution=side)
    shorter = functools.partial(adapter_of(framework).apply_patch, r=r, restore=False)
    others = {"published": functools.partial(published_form, r=r), "shorter": shorter}
    run = functools.partial(benchmark.measure, loaded, r, batch=batch, dtype=dtype, others=others)
    x = to_tensor(loaded.model, np.zeros((batch, *loaded.input_shape), dtype=np.float32))
    with evaluating(loaded.model):
        loaded.model(x)
        start = time.perf_counter()
        loaded.model(x)
    one = 4 * (time.perf_counter() - start)  # unpatched, and four faster ones
    rounds = max(least, min(12, int(seconds / one / 2)) * 2 + 1)
    found = {"cell": list(cell), **run(rounds=rounds).as_dict()}
    if missed(found):
        parts = benchmark.profile(loaded, r, batch=batch, dtype=dtype, rounds=min(rounds, 9))
        found["profile"] = asdict(parts)
    return found


def missed(found: dict[str, Any]) -> list[str]:
    """Return the names of the targets that a cell misses."""
    aims = {
        "below 93 % of free-drop": found["drop_share"] >= 0.93,
        "slower than unpatched": found["speedup"] >= 1,
        "slower than the published form": ahead(found) >= 1,
    }
    return [name for name, met in aims.items() if not met]


def shorter(found: dict[str, Any]) -> float:
    """Return the share of free-drop with ``restore=False``, as in free-drop and the published form."""
    return float(found["drop_share"] / found["ahead"]["shorter"])


def ahead(found: dict[str, Any]) -> float:
    """Return the speed relative to the published form, both without restoring."""
    return float(found["ahead"]["published"] / found["ahead"]["shorter"])


def explained(found: dict[str, Any]) -> str:
    """Return the targets that a cell misses, and its time beyond free-drop, in microseconds per forward."""
    reasons = f"    {', '.join(missed(found))} ({ahead(found):.2f}x of the published form)"
    profile = found.get("profile")
    if profile is None:
        return reasons
    spent = sorted(profile["parts"].items(), key=lambda part: -part[1])
    parts = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in spent)
    over = (profile["merging"] - profile["dropping"]) * 1e6
    return f"{reasons}\n    {over:.0f} us over {profile['dropping'] * 1e6:.0f} us of free-drop: {parts}"


def line(found: dict[str, Any]) -> str:
    speed = found["images_per_second"]
    framework, size, side, batch, r, dtype = found["cell"]
    return (
        f"{framework:6s} {size:5s} {side} {dtype:8s} {batch:5d} {r:3d}  {speed['unpatched']:8.2f} "
        f"{speed['merging']:8.2f} {speed['published']:8.2f}  {found['speedup']:5.2f}x "
        f"{found['limit']:5.2f}x {found['drop_speedup']:5.2f}x {found['drop_share']:9.1%} "
        f"{shorter(found):8.1%} {ahead(found):8.2f}x"
    )


def summary(cells: list[dict[str, Any]]) -> str:
    """Return how the cells compare with the targets."""
    drop, short = [one["drop_share"] for one in cells], [shorter(one) for one in cells]
    against, slower = [ahead(one) for one in cells], sum(one["speedup"] < 1 for one in cells)
    return (
        f"{len(cells)} cells: of free-drop {aimed(drop)}; with restore=False {aimed(short)}; slower than "
        f"unpatched: {slower}; against the published form {statistics.median(against):.2f}x in the median, "
        f"{min(against):.2f}x at least, {sum(a < 1 for a in against)} slower than it"
    )


def aimed(shares: list[float]) -> str:
    """Return shares of free-drop compared with their target."""
    below = sum(share < 0.93 for share in shares)
    return f"{statistics.median(shares):.1%} in the median, {min(shares):.1%} at least, {below} below 93 %"


def asked(cell: Sequence[Any], words: str) -> bool:
    """Whether a cell has all of these words."""
    return set(words.split()) <= set(map(str, cell))


def draw(cells: list[dict[str, Any]], path: Path, machine: dict[str, Any]) -> None:
    """Draw images per second against r; all cells must be of one model at one size in one dtype."""
    models = {(one["model"], *one["image"], one["dtype"]) for one in cells}
    if len(models) != 1:
        raise SystemExit(f"--plot draws one model; --only leaves {len(models)}: {sorted(models)}")
    draw_figure(cells, path, machine)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="all cells, which takes hours; otherwise a few"
    )
    parser.add_argument("--only", default="", help="only cells that have all these words")
    parser.add_argument("--seconds", type=float, default=20, help="for each cell")
    parser.add_argument("--rounds", type=int, default=3, help="at least, for each cell")
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--json", type=Path, help="write the numbers, or resume an existing file")
    parser.add_argument("--show", type=Path, help="print this file and measure nothing")
    parser.add_argument(
        "--missed", action="store_true", help="with --show: only cells that miss a target"
    )
    parser.add_argument("--plot", type=Path, help="draw the cells that --only leaves of one model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ClampWarning)
    path = arguments.show or arguments.json
    content = json.loads(path.read_text()) if path and path.exists() else {"cells": []}
    found = content["cells"]
    print(
        f"{'':28s}batch   r    before    after published  speed  limit   drop   of drop  shorter    ahead"
    )
    for one in found:
        if not asked(one["cell"], arguments.only):
            continue
        if not arguments.missed:
            print(line(one))
        elif missed(one):
            print(line(one), explained(one), sep="\n")
    if not arguments.show:
        if arguments.threads:
            os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
            import torch

            torch.set_num_threads(arguments.threads)
        place = {tuple(one["cell"]): i for i, one in enumerate(found)}
        for cell in FULL if arguments.full else SHORT:
            at = place.get(cell, len(found))
            steady = at < len(found) and found[at]["rounds"] >= arguments.rounds
            if steady or not asked(cell, arguments.only):
                continue
            found[at : at + 1] = [measure(cell, arguments.seconds, arguments.rounds)]
            print(line(found[at]), flush=True)
            if arguments.json:
                from tomecore.benchmark import machine

                content = {"machine": machine(), "cells": found}
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    found = [one for one in found if asked(one["cell"], arguments.only)]
    if found:
        print(summary(found))
    if arguments.plot:
        draw(found, arguments.plot, content.get("machine") or benchmark.machine())


if __name__ == "__main__":
    main()
