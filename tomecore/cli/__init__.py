"""``tomecore`` on the command line. Commands only show results; needs ``tomecore[cli]``.

Each command has a file, which adds itself to the app with ``@app.command()`` when it is imported here.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from typing import Annotated, Any

try:
    import typer
    from rich.markup import escape
except ImportError as error:
    from tomecore._project import install_hint

    sys.exit(f"tomecore: {error.name} is not installed; install it with: {install_hint('cli')}")

import tomecore
from tomecore.cli import bench, demo, evaluate, export, info, parity, plan, tune, visualize
from tomecore.cli._output import console, errors, print_error
from tomecore.cli._shared import app, paragraphs
from tomecore.errors import ClampWarning, TomeError

__all__ = ["app", "main"]

_COMMANDS = (bench, demo, evaluate, export, info, parity, plan, tune, visualize)


for _command in app.registered_commands:
    _command.help = paragraphs(inspect.getdoc(_command.callback) or "")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"tomecore {tomecore.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Token Merging for vision transformers, in every framework."""
    console.stderr = False  # until --json - of the command says otherwise


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
) -> None:
    """Print a warning on one line, without its place in the source."""
    errors.print(
        f"[yellow]warning:[/yellow] {escape(str(message))}", highlight=False, soft_wrap=True
    )


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; show errors of tomecore on one line, without a traceback."""
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.simplefilter(
        "ignore", ClampWarning
    )  # tables show the tokens that are left, and plan the layers
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        return app(arguments)
    except TomeError as error:
        print_error(str(error))
        sys.exit(1)
