"""Parts that the commands share: the app, its consoles, common options, checks of file names."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from tomecore.schedule import R, parse_r

__all__ = [
    "MODELS",
    "PICTURES",
    "Json",
    "ModelName",
    "Pretrained",
    "Resolution",
    "Weights",
    "app",
    "check_file",
    "console",
    "errors",
    "number",
    "plain_table",
    "print_error",
    "print_path",
    "print_unreadable",
    "progress_bar",
    "read_r",
    "write_numbers",
]

app = typer.Typer(
    name="tomecore",
    help="Token Merging for vision transformers, in every framework.",
    no_args_is_help=True,
    add_completion=False,
)
#: columns if neither a terminal nor COLUMNS sets them: room for every table
_COLUMNS = 120


class _Screen(Console):
    """A console that reads its width each time it prints, not when it is created."""

    @property  # type: ignore[misc]  # nothing sets it
    def size(self) -> ConsoleDimensions:
        """COLUMNS, else the width of the terminal; :data:`_COLUMNS` for a file or a pipe."""
        columns = os.environ.get("COLUMNS", "")
        if columns.isdecimal() and int(columns):
            return ConsoleDimensions(int(columns), 25)
        return super().size if self.is_terminal else ConsoleDimensions(_COLUMNS, 25)


console = _Screen()
errors = _Screen(stderr=True)

#: unreadable images that are listed at most
_NAMED = 10

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

#: the forms of a model's name
MODELS = (
    "timm:NAME, torchvision:NAME, transformers:ID_OR_FOLDER, open_clip:NAME, paddleclas:NAME, ppim:NAME, "
    "paddle:SIZE, digits:torch, digits:paddle, or module:function."
)
ModelName = Annotated[str, typer.Option("--model", "-m", help=MODELS)]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="Use the weights that its library offers (downloads them)."),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="A file of weights: safetensors, .pth or .pdparams."),
]
Resolution = Annotated[
    int | None, typer.Option("--resolution", min=1, help="Pixels on a side of the input.")
]
Json = Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")]


def progress_bar() -> Progress:
    """Return a bar of the steps done and the running one, on stderr; it disappears at the end."""
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=errors,
        transient=True,
    )


def plain_table(**kwargs: Any) -> Table:
    """Return a table in the style of all commands."""
    return Table(
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        **kwargs,
    )


def check_file(path: Path | None, option: str, endings: tuple[str, ...] = ()) -> None:
    """Raise, before any work is done, if ``path`` cannot be the file an option writes."""
    if path is None:
        return
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give a file name", param_hint=option)
    if endings and path.suffix.lower() not in endings:
        raise typer.BadParameter(
            f"{path} must end in {', '.join(endings[:-1])} or {endings[-1]}", param_hint=option
        )


def write_numbers(path: Path | None, numbers: Any) -> None:
    """Write plain data as a JSON file, and create its folder; None writes nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers, indent=1) + "\n")
    print_path("All numbers", path)


def print_path(what: str, path: Path) -> None:
    """Print the path of a file that was written; the path is not broken into lines."""
    console.print(f"{what}: [bold]{escape(str(path))}[/bold]", highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error on one line of stderr."""
    errors.print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)


def print_unreadable(reasons: Sequence[str], kept: int, hint: str = "") -> None:
    """Print which images could not be read besides the ``kept`` ones; ``hint``: where all are listed."""
    total = len(reasons) + kept
    errors.print(f"[red]{len(reasons)} of {total} images could not be read:[/red]", highlight=False)
    for reason in reasons[:_NAMED]:
        errors.print(f"  {escape(reason)}", highlight=False, soft_wrap=True)
    if len(reasons) > _NAMED:
        errors.print(f"  and {len(reasons) - _NAMED} more{hint}", highlight=False)


def number(value: float | None, form: str, unit: str = "") -> str:
    """Return a cell of a table; a dash for None."""
    return "-" if value is None else format(value, form) + unit


def read_r(text: str, option: str = "--r") -> R:
    """Return the r in a typed text: 16, "(16, -1)" or "[0, 0, 30]"."""
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        raise typer.BadParameter(
            f'{text!r} is not an r; allowed are a number (16), "(16, -1)" for mean and inflect, and '
            '"[0, 0, 30]" for one number per layer',
            param_hint=option,
        ) from None
    listed = isinstance(value, list)
    parse_r(len(value) or 1 if listed else 1, value)
    return value
