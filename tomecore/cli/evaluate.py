"""``tomecore evaluate``: accuracy and speed of a model on a folder of images, at several r."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._images import DIGITS, held_out
from tomecore.cli._output import (
    console,
    counted,
    number,
    plain_table,
    print_path,
    print_unreadable,
    say,
    short_labels,
)
from tomecore.cli._progress import prepare_kernels, progress_bar, steps
from tomecore.cli._several import OPTIONS, SeveralR
from tomecore.cli._shared import (
    RANDOM,
    Json,
    Matching,
    ModelName,
    Pretrained,
    Resolution,
    Weights,
    app,
    label_of,
    read_r,
    warn_of_other_models,
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
            metavar="DATA",
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
            help='Tokens merged per layer: 16, "(16, -1)" for mean and inflect, "[0, 0, 30]", or tuned.json; '
            "several in a row. The unpatched model, r = 0, always comes first.",
        ),
    ] = ["8", "16"],  # noqa: B006
    matching: Matching = "tome",
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
            "--limit",
            min=1,
            help="Use at most this many images, spread evenly over DATA.",
            show_default="all",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass.")] = 32,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="cpu, cuda, gpu:0 ...",
            show_default="the GPU if there is one, else the CPU",
        ),
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
        typer.Option(
            "--plot",
            help="Plot accuracy (or agreement) against images per second into this file: .png, .svg or .pdf.",
        ),
    ] = None,
) -> None:
    """Measure what merging costs in accuracy and gains in speed, on your own images.

    Without labels it reports how often the model predicts the same as without merging. A speed needs at least
    three batches. The exit code is 1 if an image could not be read; the others are evaluated.

    Example: tomecore evaluate digits --model digits:torch --r 8 16

    On several GPUs or machines: torchrun --nproc-per-node 2 -m tomecore.cli evaluate DATA ...; for Paddle:
    python -m paddle.distributed.launch --nproc_per_node 2 $(which tomecore) evaluate DATA ... Both
    launchers read --r as an option of their own: use --schedule instead.
    """
    check_file(json_file, "--json")
    check_file(plot, "--plot", PLOTS)
    check_file(resume, "--resume")
    schedules = [read_r(text) for text in r]
    labels_of_r = [label_of(text, one) for text, one in zip(r, schedules, strict=True)]

    with steps("importing the libraries") as step:
        from tomecore import evaluation, loading
        from tomecore.evaluation import distributed

        found = None if data == DIGITS else evaluation.find(data, labelled=not no_labels)
        names = None if classes is None else evaluation.read_names(classes)
        if found is None and names is not None:
            raise typer.BadParameter("the digits' classes are 0 to 9", param_hint="--classes")
        step(f"building {model}")
        loaded = loading.load(model, pretrained=pretrained, weights=weights, resolution=resolution)
        loading.adapter_of(loaded.framework).apply_patch(loaded.model, matching=matching)
        warn_of_other_models(schedules, model)
        place = evaluation.put_on(loaded.model, device)
        prepare_kernels(step, place, "bfloat16" if amp is Precision.bf16 else "float32")
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
                name=model if matching == "tome" else f"{model}, {matching}",
                processes=processes,
                progress=progress,
            )
        if processes.first:
            if found is not None and found.others:
                say(f"Skipped files that are not images: {found.others}")
            if loading.has_random_weights(model, pretrained, weights):
                say(RANDOM)
            rest = [label for label, one in zip(labels_of_r, schedules, strict=True) if one != 0]
            console.print(_table(result, ["unpatched", *rest], model, matching, place, amp))
            if result.rows[0].images_per_second is None:
                say(_untimed(result))
            numbers = {
                "model": model,
                "matching": matching,
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


def _untimed(result: Result) -> str:
    """Return the sentence for a result with too few batches to time."""
    smaller = result.images // 3
    hint = f", or use --batch {smaller} or less" if 0 < smaller < result.batch else ""
    return (
        f"Too few images to time: {result.timed} x {counted(result.batch, 'image')}, and a speed needs at "
        f"least 3 batches. Give more images{hint}."
    )


def _table(
    result: Result,
    labels: Sequence[str],
    model: str,
    matching: str,
    place: str,
    amp: Precision | None,
) -> Table:
    several = "" if result.processes == 1 else f", {result.processes} processes together"
    precision = "" if amp is None else f" in {amp.value}"
    short, notes = short_labels(labels)
    caption = "limit: the speed-up that the arithmetic allows"
    if result.rows[0].images_per_second is not None:
        caption = (
            f"images per s: {result.timed} forward passes of {result.batch} images on {place}{precision}"
            f"{several}, in turn with the unpatched model; {caption}"
        )
    undefined = sum(row.undefined for row in result.rows)
    if undefined:
        caption += f"; [red]{undefined} outputs with NaN, counted as wrong[/red]"
    how = "" if matching == "tome" else f", matching {escape(matching)},"
    title = f"{escape(model)}{how} on {counted(result.images, 'image')}"
    table = plain_table(title=title, caption="\n".join([*map(escape, notes), caption]))
    for heading in (
        *("r", "tokens\nleft", "top-1", "top-5", "agrees", "images\nper s", "speed-up", "limit"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for index, (row, label) in enumerate(zip(result.rows, short, strict=True)):
        table.add_row(
            escape(label),
            str(row.tokens),
            number(row.top1, ".2%"),
            number(row.top5, ".2%"),
            number(row.agreement if index else None, ".2%"),
            number(row.images_per_second, ".1f"),
            number(row.speedup if index else None, ".2f", "x"),
            number(row.limit if index else None, ".2f", "x"),
        )
    return table
