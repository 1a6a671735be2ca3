"""``tomecore visualize``: which tokens of an image were merged, as a drawing and as a page."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tomecore.cli._files import check_file
from tomecore.cli._output import console, print_error, print_path
from tomecore.cli._progress import progress_bar
from tomecore.cli._several import SeveralR
from tomecore.cli._shared import (
    PICTURES,
    Matching,
    ModelName,
    Pretrained,
    Resolution,
    Weights,
    app,
    read_r,
)
from tomecore.errors import ArgumentValueError, ClampWarning, TomeError

if TYPE_CHECKING:
    import numpy as np

    from tomecore.loading import Loaded
    from tomecore.schedule import R
    from tomecore.visualization import MergedImages

#: endings of the drawing
_DRAWINGS = (*PICTURES, ".svg", ".pdf")
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
            help='16, "(16, -1)" for mean and inflect, "[0, 0, 30]", or tuned.json; several in a row to '
            "compare.",
            show_default="16",
        ),
    ] = None,
    matching: Matching = "tome",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Layers to draw, from 0: 2,5,8,11.",
            show_default="four, spread over the model",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help=f"Where to write the drawing: {', '.join(_DRAWINGS)}."),
    ] = Path("tomecore-visualize.png"),
    html: Annotated[
        Path | None,
        typer.Option("--html", help="Also write a page with all layers; it works offline."),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option("--title", help="The line above the images.", show_default="the model's name"),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            "--scale",
            min=1,
            help="Pixels of the drawing on a side of one pixel of the model's input.",
            show_default="at least 320 pixels for an image",
        ),
    ] = None,
    opacity: Annotated[
        float,
        typer.Option(
            "--opacity",
            min=0,
            max=1,
            help="How much of the image the colours of groups cover, from 0 (only outlines) to 1.",
        ),
    ] = 1.0,
    background: Annotated[
        str,
        typer.Option(
            "--background",
            help="A colour, or transparent, on which text is legible on light and dark pages.",
        ),
    ] = "white",
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Draw at most this many images.")
    ] = 32,
) -> None:
    """Draw which tokens of your images merge: the original next to merged groups, layer by layer.

    Each image has a row for each r. If an image cannot be read, it is reported, the others are drawn, and
    the exit code is 1.

    Example: tomecore visualize photo.jpg --model timm:vit_base_patch16_224 --pretrained --r 8 16
    """
    check_file(output, "--output", _DRAWINGS)
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

    with progress_bar() as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", ClampWarning)  # the tokens that are left are printed
        task = bar.add_task(f"building {model}", total=len(schedules) + 3)

        def progress(step: str) -> None:
            bar.update(task, advance=1, description=step)

        loaded = load(model, pretrained=pretrained, weights=weights, resolution=resolution)
        note = _weights_note(loaded, pretrained or weights is not None)
        heading = f"Tokens merged by {loaded.name}" if title is None else title
        style = _Style(heading, opacity, background, note)
        lines, unread = _draw(
            loaded, matching, paths, schedules, numbers, scale, style, output, html, progress
        )
    for line in (*lines, note if lines else ""):
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for path, kind in ((output, "Drawing"), (html, "Page")):
        if lines and path is not None:
            print_path(kind, path)
    complaints += unread
    _print_complaints(complaints)
    if complaints:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Style:
    """How the images are drawn, and what is written next to them."""

    title: str
    opacity: float
    background: str
    note: str


def _draw(
    loaded: Loaded,
    matching: str,
    paths: list[Path],
    schedules: list[R],
    layers: list[int] | None,
    scale: int | None,
    style: _Style,
    output: Path,
    html: Path | None,
    progress: Callable[[str], None],
) -> tuple[list[str], list[str]]:
    """Write the files; return a line for each r, and the errors of images that could not be read."""
    import numpy as np

    from tomecore import visualization
    from tomecore.loading import adapter_of

    adapter = adapter_of(loaded.framework)
    patched = adapter.apply_patch(loaded.model, matching=matching)
    depth = len(adapter.handle(patched).schedule)
    wanted = visualization.layers_to_draw(depth) if layers is None else layers
    for layer in wanted:
        if layer >= depth:
            raise typer.BadParameter(
                f"there is no layer {layer}; {loaded.name} has layers 0 to {depth - 1}",
                param_hint="--layers",
            )
    for schedule in schedules:
        patched.r = schedule  # a list of the wrong length is an error here, before any work
    progress(f"reading {len(paths)} image{'s' * (len(paths) > 1)}")
    names, inputs, pixels, unread = _read(loaded, paths, scale)
    if not inputs:
        return [], unread
    merged = visualization.follow_images(
        patched, np.stack(inputs), pixels, names, schedules, progress
    )
    progress("drawing")
    strip = visualization.draw_strip(
        merged, wanted, title=style.title, opacity=style.opacity, background=style.background
    )
    with _writing(output):
        strip.save(output)
    if html is not None:
        page = visualization.html_page(merged, style.title, style.note, style.opacity)
        with _writing(html):
            html.write_text(page, encoding="utf-8")
    return [_tokens_left(merged, number, wanted) for number in range(len(schedules))], unread


def _read(
    loaded: Loaded, paths: list[Path], scale: int | None
) -> tuple[list[str], list[np.ndarray], list[np.ndarray], list[str]]:
    """Return names, inputs and pixels to draw on of all images that can be read, and the others' errors."""
    from tomecore.loading.images import read_image
    from tomecore.visualization import pixels_to_draw

    names, inputs, pixels, unread = [], [], [], []
    for path in paths:
        try:
            image = read_image(path)
        except ArgumentValueError as error:
            unread.append(str(error))
            continue
        names.append(path.name)
        inputs.append(loaded.image(image))
        pixels.append(pixels_to_draw(inputs[-1], loaded.preprocess, scale, image))
    return names, inputs, pixels, unread


def _tokens_left(merged: MergedImages, number: int, layers: list[int]) -> str:
    left = ", ".join(str(merged.tokens(number, layer)) for layer in layers)
    return (
        f"r={merged.r[number]}: of {merged.tokens(number, -1)} tokens, {left} are left after "
        f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))}"
    )


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
    """Return the layers in a typed text such as "2,5,8,11"."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 0:
        raise typer.BadParameter(
            f"{text!r} does not name layers; give numbers from 0 with commas between them: 2,5,8,11",
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
