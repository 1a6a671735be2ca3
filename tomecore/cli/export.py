"""``tomecore export``: a file for ONNX Runtime or OpenVINO that merges tokens, checked before it is kept."""

from __future__ import annotations

import statistics
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.table import Table

from tomecore import schedule
from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._output import console, number, plain_table, print_path, print_unreadable, say
from tomecore.cli._progress import prepare_kernels, steps
from tomecore.cli._shared import (
    RANDOM,
    Json,
    Matching,
    ModelName,
    Pretrained,
    Resolution,
    Weights,
    app,
    read_r,
    warn_of_other_models,
)

if TYPE_CHECKING:
    from tomecore.exporting import Exported
    from tomecore.loading import Loaded


class Format(str, Enum):
    """The format of the file."""

    onnx = "onnx"
    openvino = "openvino"


@app.command()
def export(
    model: ModelName,
    file: Annotated[
        Path,
        typer.Option(
            "--onnx",
            "--out",
            "-o",
            help="The file to write: .onnx, or .xml with --format openvino. Its folder must exist.",
            show_default=False,
        ),
    ],
    r: Annotated[
        str | None,
        typer.Option(
            "--r",
            help='Tokens merged per layer: 16, "(16, -1)", "[0, 0, 30]" or tuned.json; 0: no merging.',
        ),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="Instead of --r: the arithmetic limit to reach, such as 2."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="openvino is converted from ONNX.")
    ] = Format.onnx,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="A folder of images, for the check and the cosine to the unmerged model.",
            show_default="random ones",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Use at most this many of the images.")
    ] = 32,
    pretrained: Pretrained = False,
    weights: Weights = None,
    resolution: Resolution = None,
    matching: Matching = "tome",
    trim_last: Annotated[
        bool,
        typer.Option(
            "--trim-last", help="The last block computes the prefix tokens only: the same, faster."
        ),
    ] = False,
    projection: Annotated[
        bool,
        typer.Option(
            "--projection/--no-projection",
            help="Of a CLIP: with or without the projection to the space that it shares with texts.",
        ),
    ] = True,
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            help="The field to export if a model of transformers returns several, such as pooler_output.",
            show_default="the first of logits, image_embeds, pooler_output and the hidden state",
        ),
    ] = None,
    input_name: Annotated[
        str, typer.Option("--input-name", help="Name of the input in the file.")
    ] = "images",
    output_name: Annotated[
        str, typer.Option("--output-name", help="Name of the output in the file.")
    ] = "features",
    opset: Annotated[
        int | None,
        typer.Option(
            "--opset", help="Version of ONNX's operators.", show_default="the exporter's choice"
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            "--batch", min=1, help="Images in each timed run; the file runs with any number."
        ),
    ] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Timed rounds; 0: no timing.")] = 5,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json_file: Json = None,
) -> None:
    """Export a model that merges tokens to an ONNX file; tomecore is not needed to run it.

    The file takes (n, C, H, W) float32 images, normalised as the model needs them, for any n. ONNX Runtime
    runs it at two batch sizes next to the model itself. If the results differ, the file is removed and the
    exit code is 1. Weights are random unless --pretrained or --weights. Give exactly one of --r and
    --speedup.

    Example: tomecore export --model open_clip:ViT-B-16/openai --pretrained --r 13 --onnx tower.onnx
    """
    check_file(json_file, "--json")
    check_file(file, "--onnx")
    if (r is None) == (speedup is None):
        raise typer.BadParameter("give exactly one of --r, --speedup")
    wish: schedule.R = 0 if r is None else read_r(r)

    with steps("importing the libraries") as step:
        from tomecore import exporting, loading

        step(f"building {model}")
        loaded = loading.load(model, pretrained=pretrained, weights=weights, resolution=resolution)
        loading.adapter_of(loaded.framework).apply_patch(
            loaded.model, matching=matching, trim_last=trim_last
        )
        warn_of_other_models([wish], model)
        if speedup is not None:
            wish = schedule.for_speedup(loaded.model, speedup)
        if images is not None:
            step(f"reading {images}")
        given, unreadable = (None, []) if images is None else _read(images, loaded, limit)
        prepare_kernels(step, "cpu")
        step("exporting, checking and timing; a minute or more")
        found = exporting.export(
            loaded,
            file,
            r=wish,
            images=given,
            projection=projection,
            field=field,
            names=(input_name, output_name),
            opset=opset,
            format=form.value,
            force=force,
            batch=batch,
            rounds=rounds,
        )
    if loading.has_random_weights(model, pretrained, weights):
        say(RANDOM)
    _report(found, loaded)
    write_numbers(json_file, {"model": model, "matching": matching, **found.as_dict()})
    if unreadable:
        print_unreadable(unreadable, 0 if given is None else len(given))
        raise typer.Exit(1)


def _read(folder: Path, loaded: Loaded, limit: int) -> tuple[Any, list[str]]:
    """Return the images of a folder as the model's input, and why others cannot be read."""
    from tomecore import evaluation

    found = evaluation.find(folder, labelled=False)
    chosen = evaluation.evenly_spread(len(found.paths), limit)
    paths = [found.paths[index] for index in chosen]
    read, unreadable = evaluation.Pictures(paths, loaded.image, found.root).read_all()
    if not read:
        raise typer.BadParameter(
            f"no image in {folder} can be read: {unreadable[0]}", param_hint="--images"
        )
    return np.stack([image for _, image in read]), unreadable


def _report(found: Exported, loaded: Loaded) -> None:
    merges = found.tokens_left < found.tokens
    if merges:
        say(
            f"{found.tokens} tokens become {found.tokens_left}; the arithmetic allows {found.limit:.2f}x."
        )
    else:
        say("r is 0: the file merges nothing, and is as fast as the model was.")
    batches = " and ".join(str(batch) for batch in found.batches)
    say(
        f"Checked at batch {batches} against {loaded.framework}: the largest difference is "
        f"{found.difference:.1e} of the largest output."
    )
    if found.near_ties:
        say(
            f"[yellow]{found.near_ties} of {found.checked} images differ by more: the similarities of some "
            "of their tokens differ by rounding only, and these merge differently.[/yellow]"
        )
    if found.constant:
        say(
            "[yellow]All images have the same output, so this check says little: load trained "
            "weights.[/yellow]"
        )
    if merges and found.cosine:
        what = (
            "the given images" if found.given else "random images, where it says little (--images)"
        )
        say(
            f"Cosine to the unmerged model: {statistics.fmean(found.cosine):.4f} on average, "
            f"{min(found.cosine):.4f} at least, on {what}."
        )
    if found.speeds:
        say("Images per second, next to a file without merging:")
        console.print(_table(found))
    size = f"{found.size / 1e6:.1f} MB"
    print_path(f"Done, {size}", found.path)
    for other in found.others:
        print_path("It needs next to it", other)


def _table(found: Exported) -> Table:
    table = plain_table()
    for heading in ("threads", "batch", "unmerged", "merged", "speed-up", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for speed in found.speeds:
        table.add_row(
            str(speed.threads),
            str(speed.batch),
            number(speed.unmerged, ".1f"),
            number(speed.merged, ".1f"),
            number(speed.speedup, ".2f", "x"),
            number(found.limit, ".2f", "x"),
        )
    return table
