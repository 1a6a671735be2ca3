"""``tomecore bench``: speed beside its limits, in the user's own environment."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from enum import Enum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import tomecore
from tomecore.backends._fused import unavailable
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
    plain_table,
    progress_bar,
    read_r,
    write_numbers,
)

if TYPE_CHECKING:
    from tomecore.benchmark import Measurement, Profile


class Dtype(str, Enum):
    """Of weights and images."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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
        typer.Option("--r", help='Tokens merged per layer: 16, "(16, -1)"; several: one row each.'),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Images per forward pass; several.")
    ] = None,
    resolution: Resolution = None,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and images.")] = Dtype.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda (torch), gpu:0 (Paddle) ...")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, help="On a CPU; otherwise the framework's own choice.")
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="compile and cudagraphs are torch's, to_static is Paddle's.")
    ] = Mode.eager,
    latency: Annotated[
        bool, typer.Option("--latency", help="Batch 1, many rounds, milliseconds.")
    ] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Forward and backward instead of forward alone.")
    ] = False,
    trim_last: Annotated[
        bool,
        typer.Option("--trim-last", help="The last block makes the tokens at the front alone."),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the gap to free-drop is.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved timing rounds.")] = 9,
    repeat: Annotated[int, typer.Option(min=1, help="Calls between two looks at the clock.")] = 1,
    pretrained: Pretrained = False,
    json_file: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw images/s against r into this picture.")
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
    from tomecore.loading import load

    loaded = load(model, pretrained=pretrained, resolution=resolution)
    if threads is not None and loaded.framework == "torch":
        import torch

        torch.set_num_threads(threads)
    found, profiles = [], []
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
                    trim_last=trim_last,
                )
            )
            bar.advance(task)
            if profile:
                profiles.append(
                    benchmark.profile(loaded, schedule, **place, rounds=rounds, trim_last=trim_last)
                )
                bar.advance(task)
    console.print(_table(found, latency))
    for cell, split in zip(found, profiles):  # noqa: B905 (there may be none)
        console.print(_split(cell, split))
    if json_file is not None:
        cells_of = [cell.as_dict() for cell in found]
        for cell_of, split in zip(cells_of, profiles):  # noqa: B905
            cell_of["profile"] = split.parts
        write_numbers(json_file, {"machine": machine(), "cells": cells_of})
    if plot is not None:
        benchmark.draw(found, plot)
        console.print(f"Picture: [bold]{escape(str(plot))}[/bold]")


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores, threads, versions, and whether kernels were compiled."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "the framework's choice"),
        "python": platform.python_version(),
        "tomecore": tomecore.__version__,
        "kernels": unavailable() or "compiled",
    }
    for name in (
        "torch",
        "timm",
        "torchvision",
        "transformers",
        "paddlepaddle",
        "paddlepaddle-gpu",
        "numba",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "torch" in found:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _table(cells: list[Measurement], latency: bool) -> Table:
    first = cells[0]
    how = "forward and backward" if first.train else "forward"
    how += ", the last block trimmed" if first.trim_last else ""
    memory = any(value for cell in cells for value in cell.peak_bytes.values())
    table = plain_table(
        title=f"{first.model} at {first.image[0]}x{first.image[1]}, {first.tokens} tokens, "
        f"{first.dtype} on {first.device}, {first.mode}, {how}",
        caption="limit: what the arithmetic allows; free-drop: tokens dropped by a slice, what the machine "
        "gives; spread: quartiles of the rounds; random weights unless --pretrained",
    )
    unit = "ms per\nimage" if latency else "images\nper s"
    headings = [
        "batch",
        "r",
        "tokens\nleft",
        f"{unit}\nbefore",
        f"{unit}\nafter",
        "speed-up",
        "spread",
    ]
    headings += ["limit", "% of\nlimit", "free-\ndrop", "% of\nfree-drop", "merge\nshare"]
    for heading in headings + (["peak MiB\nbefore", "peak MiB\nafter"] if memory else []):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        speed = [cell.images_per_second[name] for name in ("unpatched", "merging")]
        shown = [f"{1e3 / s:.2f}" if latency else f"{s:.1f}" for s in speed]
        low, high = cell.speedup_quartiles
        row = [str(cell.batch), str(cell.r), str(cell.tokens_left), *shown]
        row += [
            f"[green]{cell.speedup:.2f}x[/green]",
            f"{low:.2f}-{high:.2f}",
            f"{cell.limit:.2f}x",
        ]
        row += [f"{cell.limit_share:.0%}", f"{cell.drop_speedup:.2f}x", f"{cell.drop_share:.1%}"]
        row += ["-" if cell.merge_share is None else f"{cell.merge_share:.1%}"]
        if memory:
            peaks = [cell.peak_bytes[name] for name in ("unpatched", "merging")]
            row += ["-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks]
        table.add_row(*row)
    return table


def _split(cell: Measurement, split: Profile) -> Table:
    table = plain_table(
        title=f"batch {cell.batch}, r={cell.r}: {split.merging * 1e3:.2f} ms merging, "
        f"{split.dropping * 1e3:.2f} ms dropping; the difference:"
    )
    table.add_column("part")
    for heading in ("ms", "of the forward"):
        table.add_column(heading, justify="right")
    for name, seconds in sorted(split.parts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / split.merging:+.1%}")
    return table
