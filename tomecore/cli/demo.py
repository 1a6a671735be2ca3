"""``tomecore demo``: the main job, shown as a table and a drawing."""

from __future__ import annotations

import importlib.util
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._output import console, number, plain_table, print_path
from tomecore.cli._progress import progress_bar
from tomecore.cli._shared import PICTURES, Json, app
from tomecore.errors import ClampWarning, TomeError
from tomecore.frameworks import FRAMEWORKS, require

if TYPE_CHECKING:
    from tomecore.demo import DemoResult, DemoRow


class Framework(str, Enum):
    """Which framework to run."""

    torch = "torch"
    paddle = "paddle"
    both = "both"


@app.command()
def demo(
    framework: Annotated[
        Framework, typer.Option("--framework", "-f", help="Which framework to run.")
    ] = Framework.both,
    json_file: Json = None,
    picture: Annotated[
        Path,
        typer.Option(
            "--picture",
            help="Where to draw the merged tokens of digits; those of a photograph are drawn next to it, "
            "with -photo in the name.",
        ),
    ] = Path("tomecore-demo.png"),
    batch: Annotated[int, typer.Option(min=1, help="Images per forward pass when timing.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved timing rounds.")] = 5,
    images: Annotated[
        int | None, typer.Option(min=1, help="Test images to use, from the first on; default: all.")
    ] = None,
) -> None:
    """Classify held-out handwritten digits with a small ViT, unpatched and merging tokens.

    The same weights run in torch and in Paddle; the table shows accuracy and speed, the line under it
    how far the two frameworks agree. Two drawings show which patches merge.

    Example: tomecore demo --framework torch
    """
    check_file(json_file, "--json")
    check_file(picture, "--picture", PICTURES)
    if framework is Framework.both:
        frameworks = [name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None]
        for missing in FRAMEWORKS.keys() - frameworks:
            console.print(
                f"{missing} is not installed, so there is nothing to compare with; install it with: "
                f"[bold]{escape(FRAMEWORKS[missing])}[/bold]"
            )
        if not frameworks:
            raise TomeError("neither torch nor paddle is installed; install one of them")
    else:
        require(framework.value)
        frameworks = [framework.value]

    from tomecore import demo as job

    with progress_bar() as bar:
        task = bar.add_task("loading", total=job.steps(frameworks))

        def progress(step: str) -> None:
            bar.update(task, advance=1, description=step)

        with warnings.catch_warnings():
            # r = 16 as published ends in a layer with too few tokens; the table shows what is left.
            warnings.simplefilter("ignore", ClampWarning)
            result, models = job.run(
                frameworks, batch=batch, rounds=rounds, limit_images=images, progress=progress
            )
    console.print(_table(result))
    console.print(_parity_line(result))
    write_numbers(json_file, result.as_dict())
    photo = picture.with_stem(f"{picture.stem}-photo")
    job.draw_digits(next(iter(models.values())), picture)
    job.draw_photo(frameworks[0], photo)
    print_path("Merged tokens of digits at r=16", picture)
    print_path("Merged tokens of a photograph in a ViT with random weights", photo)
    console.print("The photograph is china.jpg of scikit-learn (danielbuechele, CC BY 2.0).")


def _table(result: DemoResult) -> Table:
    table = plain_table(
        title=f"A ViT of 12 layers and 197 tokens on {result.images} held-out digits",
        caption=f"speed at batch {result.batch}; limit: what the arithmetic allows; "
        "merge tax: extra time over dropping the tokens without merging them",
    )
    table.add_column("framework", no_wrap=True)
    for heading in (
        "r",
        "tokens\nleft",
        "accuracy",
        "images\nper s",
        "speed-up",
        "limit",
        "% of\nlimit",
        "merge\ntax",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    framework = None
    for row in result.rows:
        if framework not in (None, row.framework):
            table.add_section()
        table.add_row(*_cells(row, first=row.framework != framework))
        framework = row.framework
    return table


def _cells(row: DemoRow, first: bool) -> list[str]:
    return [
        f"[bold]{row.framework}[/bold]" if first else "",
        "unpatched" if row.r is None else str(row.r),
        str(row.tokens),
        format(row.accuracy, ".1%"),
        format(row.images_per_second, ".1f"),
        "-" if row.speedup is None else f"[green]{row.speedup:.2f}x[/green]",
        number(row.limit, ".2f", "x"),
        number(row.limit_share, ".0%"),
        number(row.merge_tax, "+.0%"),
    ]


def _parity_line(result: DemoResult) -> str:
    if not result.parity:
        return "Parity: needs both frameworks."
    largest = max(report.largest_difference_agreeing for _, report in result.parity)
    line = (
        f"Parity, {result.images} images at {len(result.parity)} schedules: largest difference of "
        f"logits {largest:.1e} where all merges agree; identical merge decisions "
        f"{result.identical_decisions:.2%} of images, identical predictions "
        f"{result.identical_predictions:.2%}"
    )
    gap = max(report.largest_gap for _, report in result.parity)
    if gap:
        line += (
            f". Where merges differ, the first to differ was a near-tie (similarity gap {gap:.1e})"
        )
    return line + "."
