"""``tomecore bench``: speed next to its limits, in the user's own environment."""

from __future__ import annotations

import os
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from tomecore.cli._bench_tables import parts_of, remark_on, table_of
from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._output import console, print_path, say
from tomecore.cli._progress import prepare_kernels, steps
from tomecore.cli._several import SeveralR
from tomecore.cli._shared import (
    PICTURES,
    Json,
    Matching,
    ModelName,
    Pretrained,
    Resolution,
    app,
    label_of,
    read_r,
    warn_of_other_models,
)


class Dtype(str, Enum):
    """The dtype of weights and images."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class PropAttn(str, Enum):
    """How sizes enter attention."""

    auto = "auto"
    off = "off"
    column = "column"


#: option -> argument of apply_patch
_PROP_ATTN = {PropAttn.auto: None, PropAttn.off: False, PropAttn.column: "column"}


class Mode(str, Enum):
    """How a forward pass runs."""

    eager = "eager"
    compile = "compile"
    cudagraphs = "cudagraphs"
    to_static = "to_static"


@app.command(cls=SeveralR)
def bench(
    model: ModelName = "timm:vit_small_patch16_224",
    r: Annotated[
        list[str],
        typer.Option(
            "--r",
            help='Tokens merged per layer: 16, "(16, -1)", "[0, 0, 30]" or tuned.json; several in a row, one '
            "row of the table for each.",
        ),
    ] = ["8", "16", "(16, -1)"],  # noqa: B006
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", min=1, help="Images per forward pass; may be repeated.", show_default="8"
        ),
    ] = None,
    resolution: Resolution = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and images.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda (torch), gpu:0 (Paddle) ...")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads on a CPU.", show_default="the framework's choice"),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="compile and cudagraphs are for torch, to_static is for Paddle.")
    ] = Mode.eager,
    latency: Annotated[
        bool,
        typer.Option("--latency", help="Batch 1, at least 31 rounds, milliseconds per image."),
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Forward and backward instead of forward only.")
    ] = False,
    trim_last: Annotated[
        bool,
        typer.Option("--trim-last", help="The last block computes the prefix tokens only."),
    ] = False,
    prop_attn: Annotated[
        PropAttn,
        typer.Option(
            help="Proportional attention: the default form, none, or a column of the keys instead of "
            "a mask, for flash kernels (torch)."
        ),
    ] = PropAttn.auto,
    matching: Matching = "tome",
    profile: Annotated[
        bool, typer.Option("--profile", help="Show what the gap to free-drop consists of.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; in each, all forms are timed in turn.")
    ] = 9,
    repeat: Annotated[
        int, typer.Option(min=1, help="Calls between two readings of the clock.")
    ] = 1,
    pretrained: Pretrained = False,
    json_file: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Plot images per second against r into this file: .png, .svg or .pdf."
        ),
    ] = None,
) -> None:
    """Time a model unpatched, merging tokens, and dropping them (free-drop), next to the arithmetic limit.

    Without --model it times timm:vit_small_patch16_224. Weights are random unless --pretrained: they do not
    change the speed. The machine should be idle.

    Example: tomecore bench --model timm:vit_base_patch16_224 --r 8 13 --batch 8
    """
    check_file(json_file, "--json")
    check_file(plot, "--plot", (*PICTURES, ".svg", ".pdf"))
    if latency and batch not in (None, [1]):
        raise typer.BadParameter("measures at batch 1; leave --batch out", param_hint="--latency")
    schedules = [read_r(one) for one in r]
    batches = [1] if latency else batch or [8]
    rounds = max(rounds, 31) if latency else rounds
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # read when a framework is imported, which comes next

    with steps("importing the libraries") as step:
        from tomecore import benchmark
        from tomecore.frameworks import RUNTIMES
        from tomecore.loading import load

        step(f"building {model}")
        loaded = load(model, pretrained=pretrained, resolution=resolution)
        warn_of_other_models(schedules, model)
        if threads is not None:
            RUNTIMES[loaded.framework].set_threads(threads)
        prepare_kernels(step, device, dtype.value)
        found, labels, profiles = [], [], []
        how: dict[str, Any] = {
            "trim_last": trim_last,
            "prop_attn": _PROP_ATTN[prop_attn],
            "matching": matching,
        }
        cells = list(product(batches, zip(r, schedules, strict=True)))
        for index, (size, (text, schedule)) in enumerate(cells, start=1):
            labels.append(label_of(text, schedule))
            now = f"{index} of {len(cells)}: batch {size}, r = {labels[-1]}"
            place: dict[str, Any] = {"batch": size, "dtype": dtype.value, "device": device}
            step(f"measuring {now}")
            found.append(
                benchmark.measure(
                    loaded,
                    schedule,
                    **place,
                    mode=mode.value,
                    train=train,
                    rounds=rounds,
                    repeat=repeat,
                    **how,
                )
            )
            if profile:
                step(f"profiling {now}")
                profiles.append(benchmark.profile(loaded, schedule, **place, rounds=rounds, **how))
    console.print(table_of(found, labels, latency))
    if remark := remark_on([cell.speedup_quartiles for cell in found]):
        say(f"[yellow]{remark}.[/yellow]")
    for cell, label, split in zip(found, labels, profiles):  # noqa: B905 (there may be no profiles)
        console.print(parts_of(cell, label, split))
    if json_file is not None:
        cells_of = [cell.as_dict() for cell in found]
        for cell_of, split in zip(cells_of, profiles):  # noqa: B905
            cell_of["profile"] = split.parts
        write_numbers(json_file, {"machine": benchmark.machine(), "cells": cells_of})
    if plot is not None:
        benchmark.draw(found, plot)
        print_path("Plot", plot)
