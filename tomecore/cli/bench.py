"""``tomecore bench``: speed beside its limits, in the user's own environment."""

from __future__ import annotations

import os
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from tomecore.cli._bench_tables import parts_of, table_of
from tomecore.cli._several import SeveralR
from tomecore.cli._shared import (
    PICTURES,
    Json,
    ModelName,
    Pretrained,
    Resolution,
    app,
    check_file,
    console,
    print_path,
    progress_bar,
    read_r,
    write_numbers,
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
        list[str] | None,
        typer.Option("--r", help='Tokens merged per layer: 16, "(16, -1)"; one row for each r.'),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Images per forward pass; may be repeated."),
    ] = None,
    resolution: Resolution = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and images.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda (torch), gpu:0 (Paddle) ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU; default: the framework's choice.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="compile and cudagraphs are for torch, to_static is for Paddle.")
    ] = Mode.eager,
    latency: Annotated[
        bool, typer.Option("--latency", help="Batch 1, many rounds, milliseconds.")
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
    profile: Annotated[
        bool, typer.Option("--profile", help="Show what the gap to free-drop consists of.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved timing rounds.")] = 9,
    repeat: Annotated[
        int, typer.Option(min=1, help="Calls between two readings of the clock.")
    ] = 1,
    pretrained: Pretrained = False,
    json_file: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Plot images/s against r into this file.")
    ] = None,
) -> None:
    """Time a model unpatched, merging, and dropping tokens for free, in turn, beside the arithmetic limit.

    Weights are random unless --pretrained: they do not change the speed.
    """
    check_file(json_file, "--json")
    check_file(plot, "--plot", (*PICTURES, ".svg", ".pdf"))
    if latency and batch not in (None, [1]):
        raise typer.BadParameter("is batch 1; leave --batch out", param_hint="--latency")
    schedules = [read_r(one) for one in r or ["8", "16", "(16, -1)"]]
    batches = [1] if latency else batch or [8]
    rounds = max(rounds, 31) if latency else rounds
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # read when a framework is imported, which comes next

    from tomecore import benchmark
    from tomecore.frameworks import RUNTIMES
    from tomecore.loading import load

    loaded = load(model, pretrained=pretrained, resolution=resolution)
    if threads is not None:
        RUNTIMES[loaded.framework].set_threads(threads)
    found, profiles = [], []
    how: dict[str, Any] = {"trim_last": trim_last, "prop_attn": _PROP_ATTN[prop_attn]}
    cells = list(product(batches, schedules))
    with progress_bar() as bar:
        task = bar.add_task("", total=len(cells) * (1 + profile))
        for size, schedule in cells:
            bar.update(task, description=f"batch {size}, r={schedule}")
            place: dict[str, Any] = {"batch": size, "dtype": dtype.value, "device": device}
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
            bar.advance(task)
            if profile:
                profiles.append(benchmark.profile(loaded, schedule, **place, rounds=rounds, **how))
                bar.advance(task)
    console.print(table_of(found, latency))
    for cell, split in zip(found, profiles):  # noqa: B905 (there may be none)
        console.print(parts_of(cell, split))
    if json_file is not None:
        cells_of = [cell.as_dict() for cell in found]
        for cell_of, split in zip(cells_of, profiles):  # noqa: B905
            cell_of["profile"] = split.parts
        write_numbers(json_file, {"machine": benchmark.machine(), "cells": cells_of})
    if plot is not None:
        benchmark.draw(found, plot)
        print_path("Picture", plot)
