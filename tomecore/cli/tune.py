"""``tomecore tune``: search for a schedule on your own images, and write it to a file."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tomecore import schedule
from tomecore.cli._files import check_file, with_head, write_numbers
from tomecore.cli._images import unlabelled
from tomecore.cli._output import console, plain_table, print_path, say
from tomecore.cli._progress import prepare_kernels, progress_bar, steps
from tomecore.cli._shared import Json, Matching, ModelName, Pretrained, Resolution, Weights, app
from tomecore.schedule.saved import write_json


class Cost(str, Enum):
    """The cost that a search counts."""

    arithmetic = "arithmetic"
    measured = "measured"


@app.command()
def tune(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder of images, or the word digits, for the held-out digits that come with tomecore. "
            "Labels are not used.",
            show_default=False,
        ),
    ],
    model: ModelName,
    speedup: Annotated[
        float,
        typer.Option(
            "--speedup", help="The arithmetic limit that the schedule reaches, such as 2."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the schedule; --r reads it.")
    ] = Path("tuned.json"),
    read: Annotated[
        str | None,
        typer.Option(
            "--read",
            help="What you read from the model: module:function or file.py:function, called with (model, "
            "images), returns an array with the batch first.",
            show_default="the first array of its output",
        ),
    ] = None,
    cost: Annotated[
        Cost,
        typer.Option(
            help="arithmetic: lose least with as many multiply-adds; measured: be fastest on this device "
            "without losing more than the rule."
        ),
    ] = Cost.arithmetic,
    matching: Matching = "tome",
    pretrained: Pretrained = False,
    weights: Weights = None,
    resolution: Resolution = None,
    limit: Annotated[
        int, typer.Option("--limit", min=4, help="Use at most this many images, spread evenly.")
    ] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass.")] = 8,
    passes: Annotated[
        int,
        typer.Option("--passes", min=6, help="At most this many passes over half of the images."),
    ] = 40,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="cpu, cuda, gpu:0 ...",
            show_default="the GPU if there is one, else the CPU",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Store measurements in this file; continue from it after an interruption.",
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """Search for the schedule that loses least on your images, for what you read from the model.

    Half of the images are held back. If no schedule is better on these than the default rule, by more than
    the standard error, the schedule of the rule is written, and the output says so.

    The file also has the name of the model and the matching. It is refused for a model of another size and
    for another matching; for another name there is a warning, because a model can have several.

    Example: tomecore tune photos/ --model timm:vit_small_patch16_224 --pretrained --speedup 2
    """
    check_file(output, "--output", (".json",))
    check_file(resume, "--resume")
    check_file(json_file, "--json")

    with steps("importing the libraries") as step:
        from tomecore import evaluation, loading

        function = None if read is None else loading.function_of(read)
        step(f"building {model}")
        loaded = loading.load(model, pretrained=pretrained, weights=weights, resolution=resolution)
        loading.adapter_of(loaded.framework).apply_patch(loaded.model, matching=matching)
        place = evaluation.put_on(loaded.model, device)
        step(f"reading {data}")
        images, what = unlabelled(loaded, data, limit)
        prepare_kernels(step, place)
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        found = schedule.tune(
            loaded.model,
            images,
            speedup,
            read=function,
            cost=cost.value,
            batch=batch,
            passes=passes,
            resume=resume,
            progress=lambda done, total, text: bar.update(
                task, completed=done, total=total, description=escape(text)
            ),
        )
    found = dataclasses.replace(found, schedule=dataclasses.replace(found.schedule, model=model))
    if loading.has_random_weights(model, pretrained, weights):
        say(
            "The weights are random (neither --pretrained nor --weights): a schedule for them says nothing "
            "about a trained model."
        )
    table = plain_table(
        title=f"{escape(model)} on {escape(what)}, half of them held back",
        caption="1 - cosine: the loss, between outputs with and without merging, on the images held back",
    )
    for heading in ("schedule", "limit", "1 - cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    tokens, arithmetic = found.schedule.num_tokens, loaded.model.tome.arithmetic
    table.add_row("rule", f"{arithmetic.limit(tokens, found.rule):.2f}x", f"{found.rule_loss:.2g}")
    table.add_row("written", f"{found.schedule.speedup:.2f}x", f"{found.loss:.2g}")
    console.print(table)
    say(found.says, markup=False)
    say(
        f"{found.passes} passes over half of the images in {found.seconds:.0f} s; r = "
        f"{list(found.schedule.r)}",
        markup=False,
    )
    numbers = found.as_dict()
    write_json(output, with_head("schedule", numbers))
    print_path("Schedule, for --r and schedule.load", output)
    write_numbers(json_file, numbers, "schedule")
