"""``tomecore evaluate``: accuracy and speed of a model on a folder of images, at several r."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tomecore.cli._digits import DIGITS, held_out
from tomecore.cli._several import OPTIONS, SeveralR
from tomecore.cli._shared import (
    Json,
    ModelName,
    Pretrained,
    Resolution,
    Weights,
    app,
    check_file,
    console,
    number,
    plain_table,
    print_path,
    print_unreadable,
    progress_bar,
    read_r,
    write_numbers,
)

if TYPE_CHECKING:
    from tomecore.evaluation import Result

PLOTS = (".png", ".svg", ".pdf")


class Precision(str, Enum):
    """The precision of autocast."""

    bf16 = "bf16"
    fp16 = "fp16"


@app.command(cls=SeveralR)
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder of images for each class, in the model's order when sorted; a "
            "CSV file of lines path,label; a folder of images (no labels: agreement only); or the word "
            "digits, for the held-out digits that come with tomecore.",
            show_default=False,
        ),
    ],
    model: ModelName,
    r: Annotated[
        list[str],
        typer.Option(
            *OPTIONS,
            help='16, "(16, -1)" for mean and inflect, or "[0, 0, 30]"; several in a row. The '
            "unpatched model, r = 0, always comes first.",
        ),
    ] = ["8", "16"],  # noqa: B006
    pretrained: Pretrained = False,
    weights: Weights = None,
    resolution: Resolution = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            help="Names of the model's classes, one per line: for labels that are names, folders that "
            "hold some of the classes, or another order than the sorted one.",
        ),
    ] = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="Use all images at any depth; agreement only.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Use at most this many images, spread evenly over DATA."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass.")] = 32,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cpu, cuda, gpu:0 ...; without it, the GPU if there is one."),
    ] = None,
    amp: Annotated[
        Precision | None, typer.Option("--amp", help="Autocast, for torch models.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Store results in this file; continue from it after an interruption."
        ),
    ] = None,
    json_file: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw accuracy (or agreement) against images per second."),
    ] = None,
) -> None:
    """Measure what merging costs in accuracy and gains in speed, on your own images.

    On several GPUs or machines: torchrun --nproc-per-node 2 -m tomecore.cli evaluate DATA ...; for Paddle:
    python -m paddle.distributed.launch --nproc_per_node 2 $(which tomecore) evaluate DATA ... Both
    launchers read --r as an option of their own: use --schedule instead.

    The exit code is 1 if an image could not be read; the others are evaluated.
    """
    check_file(json_file, "--json")
    check_file(plot, "--plot", PLOTS)
    check_file(resume, "--resume")
    schedules = [read_r(text) for text in r]

    from tomecore import evaluation, loading
    from tomecore.evaluation import distributed

    found = None if data == DIGITS else evaluation.find(data, labelled=not no_labels)
    names = None if classes is None else evaluation.read_names(classes)
    if found is None and names is not None:
        raise typer.BadParameter("the digits' classes are 0 to 9", param_hint="--classes")
    loaded = loading.load(model, pretrained=pretrained, weights=weights, resolution=resolution)
    place = evaluation.put_on(loaded.model, device)
    with distributed.join(loaded.framework) as processes:
        images: Any
        labels: Any
        if found is None:
            images, labels = held_out(loaded, limit)
            labels = None if no_labels else labels
        else:
            outputs = evaluation.outputs_of(loaded.model, loaded.input_shape)
            labels = found.labels(outputs, names)
            chosen = evaluation.evenly_spread(len(found.paths), limit)
            labels = None if labels is None else labels[chosen]
            images = evaluation.Pictures(
                [found.paths[index] for index in chosen], loaded.image, found.root
            )
        with _progress(processes.first) as progress:
            result = evaluation.evaluate(
                loaded.model,
                images,
                labels,
                schedules,
                batch=batch,
                amp=None if amp is None else amp.value,
                resume=resume,
                name=model,
                processes=processes,
                progress=progress,
            )
        if processes.first:
            if found is not None and found.others:
                console.print(f"Skipped files that are not images: {found.others}")
            if loading.has_random_weights(model, pretrained, weights):
                console.print(
                    "The weights are random (neither --pretrained nor --weights): only the speed is "
                    "meaningful.",
                    soft_wrap=True,
                )
            console.print(_table(result, model, place, amp))
            numbers = {
                "model": model,
                "data": data,
                "device": place,
                "amp": None if amp is None else amp.value,
                **result.as_dict(),
                "unreadable": [
                    {"path": str(images.paths[index]), "reason": reason}
                    for index, reason in result.unreadable
                ],
            }
            write_numbers(json_file, numbers)
            if plot is not None:
                evaluation.draw(result, plot, title=f"{model}, {result.images} images of {data}")
                print_path("Plot", plot)
        processes.gather(None)  # no process leaves before all files are written
    if processes.first and result.unreadable:
        reasons = [reason for _, reason in result.unreadable]
        print_unreadable(reasons, result.images, "; --json lists all")
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[Callable[[int, int], None]]:
    if not shown:
        yield lambda done, total: None
        return
    with progress_bar() as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(result: Result, model: str, place: str, amp: Precision | None) -> Table:
    several = "" if result.processes == 1 else f", {result.processes} processes together"
    precision = "" if amp is None else f" in {amp.value}"
    caption = (
        f"images per s: forward passes at batch {result.batch} on {place}{precision}{several}, taking "
        "turns with the unpatched model on every batch; limit: what the arithmetic allows"
    )
    undefined = sum(row.undefined for row in result.rows)
    if undefined:
        caption += f"; [red]{undefined} outputs with NaN, counted as wrong[/red]"
    table = plain_table(title=f"{escape(model)} on {result.images} images", caption=caption)
    headings = ["r", "tokens\nleft", "top-1", "top-5", "agree-\nment", "images\nper s"]
    for heading in (*headings, "speed-up", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, row in enumerate(result.rows):
        table.add_row(
            "unpatched" if index == 0 else escape(str(row.r)),
            str(row.tokens),
            number(row.top1, ".2%"),
            number(row.top5, ".2%"),
            number(row.agreement if index else None, ".2%"),
            number(row.images_per_second, ".1f"),
            number(row.speedup if index else None, ".2f", "x"),
            number(row.limit if index else None, ".2f", "x"),
        )
    return table
