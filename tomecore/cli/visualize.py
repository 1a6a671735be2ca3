"""``tomecore visualize``: which tokens of an image were merged, as a drawing and as a page."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tomecore.cli._several import SeveralR
from tomecore.cli._shared import (
    PICTURES,
    ModelName,
    Pretrained,
    Resolution,
    Weights,
    app,
    check_file,
    console,
    print_error,
    print_path,
    read_r,
)
from tomecore.errors import ClampWarning, TomeError

if TYPE_CHECKING:
    from tomecore.loading import Loaded
    from tomecore.schedule import R

#: Endings of images in a folder; a file that is named directly may have any ending.
_ENDINGS = {*PICTURES, ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}


@app.command(cls=SeveralR)
def visualize(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Images, or folders of them.")
    ],
    model: ModelName,
    pretrained: Pretrained = False,
    weights: Weights = None,
    resolution: Resolution = None,
    r: Annotated[
        list[str] | None,
        typer.Option(
            "--r",
            help='16, "(16, -1)" for mean and inflect, or "[0, 0, 30]"; several in a row to '
            "compare.  [default: 16]",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Layers to draw, from 1: 3,6,9,12; without it, four spread over the model.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the drawing.")
    ] = Path("tomecore-visualize.png"),
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write a page with all layers; it works offline."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Draw at most this many images.")
    ] = 32,
) -> None:
    """Draw which tokens of your images merge: the original beside merged groups, layer by layer.

    There is a row for each image and r. If an image cannot be read, it is reported, the others are drawn,
    and the exit code is 1.
    """
    check_file(output, "--output", PICTURES)
    check_file(html, "--html", (".html", ".htm"))
    schedules = [read_r(text) for text in dict.fromkeys(r or ["16"])]
    numbers = None if layers is None else _layer_numbers(layers)
    paths, complaints = _files(images)
    if len(paths) > limit:
        console.print(
            f"Drawing the first {limit} of {len(paths)} images; --limit {len(paths)} draws all."
        )
        paths = paths[:limit]
    if not paths:
        _print_complaints(complaints)
        raise typer.Exit(1)

    from tomecore.loading import load

    loaded = load(model, pretrained=pretrained, weights=weights, resolution=resolution)
    note = _weights_note(loaded, pretrained or weights is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClampWarning)  # the tokens that are left are printed
        complaints += _draw(loaded, paths, schedules, numbers, output, html, note)
    _print_complaints(complaints)
    if complaints:
        raise typer.Exit(1)


def _draw(
    loaded: Loaded,
    paths: list[Path],
    schedules: list[R],
    layers: list[int] | None,
    output: Path,
    html: Path | None,
    note: str,
) -> list[str]:
    """Do the work; return the errors of images that could not be read."""
    import numpy as np

    from tomecore import visualization
    from tomecore.evaluation import Pictures
    from tomecore.loading import adapter_of

    adapter = adapter_of(loaded.framework)
    patched = adapter.apply_patch(loaded.model)
    depth = len(adapter.handle(patched).schedule)
    wanted = visualization.layers_to_draw(depth) if layers is None else layers
    for layer in wanted:
        if layer > depth:
            raise typer.BadParameter(
                f"there is no layer {layer}; {loaded.name} has {depth}", param_hint="--layers"
            )
    for schedule in schedules:
        patched.r = schedule  # a list of the wrong length is an error here, before any work
    found, complaints = Pictures(paths, loaded.image, Path()).read_all()
    if not found:
        return complaints
    names, inputs = [path.name for path, _ in found], [one for _, one in found]
    pixels = [loaded.preprocess.pixels(one) for one in inputs]
    merged = visualization.follow_images(patched, np.stack(inputs), pixels, names, schedules)
    with _writing(output):
        visualization.draw_strips(merged, wanted, output)
    for number, schedule in enumerate(schedules):
        left = ", ".join(str(merged.tokens(number, layer)) for layer in wanted)
        console.print(
            f"r={schedule}: of {merged.tokens(number, 0)} tokens, {left} are left after "
            f"{'layer' if len(wanted) == 1 else 'layers'} {', '.join(map(str, wanted))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    written = [(output, "Picture")]
    if html is not None:
        page = visualization.html_page(merged, f"Merged tokens of {loaded.name}", note)
        with _writing(html):
            html.parent.mkdir(parents=True, exist_ok=True)
            html.write_text(page, encoding="utf-8")
        written.append((html, "Page"))
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for path, kind in written:
        print_path(kind, path)
    return complaints


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise an error that names the file if it cannot be written, or is too large for its format."""
    try:
        yield
    except TomeError:
        raise
    except (OSError, ValueError) as error:
        raise TomeError(f"{path} cannot be written: {error}") from error


def _files(images: list[Path]) -> tuple[list[Path], list[str]]:
    """Return the paths of all images, those in folders included, and the errors of the other paths."""
    paths, complaints = [], []
    for path in images:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in _ENDINGS)
            if not inside:
                complaints.append(
                    f"there is no image in the folder {path} (looked for "
                    f"{', '.join(sorted(_ENDINGS))}, not in folders inside it)"
                )
            paths += inside
        elif not path.exists():
            complaints.append(f"there is no file {path}")
        else:
            paths.append(path)
    return paths, complaints


def _layer_numbers(text: str) -> list[int]:
    """Return the layers in a typed text such as "3,6,9,12"."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise typer.BadParameter(
            f"{text!r} does not name layers; give numbers from 1 with commas between them: 3,6,9,12",
            param_hint="--layers",
        )
    return numbers


def _weights_note(loaded: Loaded, trained: bool) -> str:
    """Return a note if the model's weights are random; else ""."""
    from tomecore.loading import has_random_weights

    if trained or not has_random_weights(loaded.name):
        return ""
    return (
        f"The weights of {loaded.name} are random, so the groups say little about a trained model; "
        "load trained ones with --pretrained or --weights FILE."
    )


def _print_complaints(complaints: list[str]) -> None:
    from tomecore.visualization import printable

    for complaint in complaints:
        print_error(printable(complaint))
