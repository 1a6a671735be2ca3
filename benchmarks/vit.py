"""Merging beside its two limits, on random timm ViTs on this machine: ``make bench``.

Each line is one interleaved run of the unpatched model on its fused attention, the patched model, and
free-drop. Only ratios within a run mean anything on a shared machine. ``--json FILE`` keeps the numbers
with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import timm
import torch

import tomecore.adapters.torch as tome
from tomecore import __version__, benchmark

SHORT = [
    ("vit_tiny_patch16_224", 8, 8),
    ("vit_tiny_patch16_224", 8, 16),
    ("vit_small_patch16_224", 8, 8),
    ("vit_small_patch16_224", 8, 16),
    ("vit_small_patch16_224", 8, (16, -1)),
    ("vit_small_patch16_224", 1, 16),
]


def measure(name: str, batch: int, r: Any, rounds: int) -> dict[str, Any]:
    """One cell of the table."""

    def fresh() -> Any:
        return timm.create_model(name).eval()

    unpatched, merging = fresh(), tome.apply_patch(fresh(), r=r)
    dropping = benchmark.free_drop(tome.apply_patch(fresh(), r=r))
    x = torch.randn(batch, 3, *unpatched.patch_embed.img_size)
    calls = {
        "unpatched": lambda: unpatched(x),
        "merging": lambda: merging(x),
        "dropping": lambda: dropping(x),
    }
    with torch.inference_mode():
        timed = list(benchmark.interleave(calls, rounds))
    tokens = unpatched.patch_embed.num_patches + unpatched.num_prefix_tokens
    return {
        "model": name,
        "batch": batch,
        "r": r,
        "images_per_second": {
            call: batch / statistics.median(seconds[call] for seconds in timed) for call in calls
        },
        "speedup": benchmark.median_ratio(timed, "unpatched", "merging"),
        "limit": merging.tome.arithmetic.limit(tokens, r),
        "free_drop_share": benchmark.median_ratio(timed, "dropping", "merging"),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(
        "model                  batch        r   unpatched   merging  speed-up  limit  of free-drop"
    )
    cells = []
    for name, batch, r in SHORT:
        cell = measure(name, batch, r, arguments.rounds)
        cells.append(cell)
        speed = cell["images_per_second"]
        print(
            f"{name:22s} {batch:5d} {r!s:>8s}  {speed['unpatched']:10.1f} {speed['merging']:9.1f}"
            f"  {cell['speedup']:7.2f}x {cell['limit']:5.2f}x {cell['free_drop_share']:13.1%}",
            flush=True,
        )
    if arguments.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "timm": timm.__version__,
            "tomecore": __version__,
            "python": platform.python_version(),
        }
        text = json.dumps({"machine": machine, "cells": cells}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
