"""The files that commands write: checks before any work is done, and JSON with one head.

Every JSON of the command line begins with ``"schema"``, such as "tomecore plan 1", and ``"tomecore"``, the
version that wrote it. The number in the schema grows if a key changes its meaning or is removed; new keys
leave it as it is. Numbers that JSON does not have are text: "nan", "inf". An r that is a schedule object is
text, too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import typer

import tomecore
from tomecore.cli._output import console, print_path
from tomecore.core.checks import why_unwritable

__all__ = ["check_file", "json_option", "with_head", "write_numbers"]

#: what the numbers are -> the number of its schema, if it is not 1
_VERSIONS: dict[str, int] = {}


class _Running:
    """The command that runs, as :func:`json_option` reads it."""

    name = ""


def json_option(context: typer.Context, path: Path | None) -> Path | None:
    """Return the value of ``--json``; if it is ``-``, tables go to stderr, and numbers to stdout."""
    console.stderr = str(path) == "-"
    _Running.name = str(context.info_name)
    return path


def check_file(path: Path | None, option: str, endings: tuple[str, ...] = ()) -> None:
    """Raise, before any work is done, if ``path`` cannot be the file an option writes."""
    if path is None or (option == "--json" and str(path) == "-"):  # which is stdout
        return
    reason = why_unwritable(path, endings)
    if reason is not None:
        raise typer.BadParameter(reason, param_hint=option)


def with_head(kind: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return plain data as it is written: after its schema and the version, without NaN and infinity.

    Args:
        kind: what the numbers are: the name of the command, or "schedule".
        numbers: plain data.
    """
    head = {"schema": f"tomecore {kind} {_VERSIONS.get(kind, 1)}", "tomecore": tomecore.__version__}
    return {**head, **_finite(numbers)}


def write_numbers(path: Path | None, numbers: dict[str, Any], kind: str | None = None) -> None:
    """Write plain data as a JSON file with a head; ``-`` prints it, and None writes nothing.

    Args:
        path: the file.
        numbers: plain data.
        kind: see :func:`with_head`; None: the name of the running command.
    """
    if path is None:
        return
    written = with_head(kind or _Running.name, numbers)
    text = json.dumps(written, indent=1, allow_nan=False)
    if str(path) == "-":
        typer.echo(text)
        return
    path.write_text(text + "\n", encoding="utf-8")
    print_path("All numbers", path)


def _finite(value: Any) -> Any:
    """Return plain data with NaN and infinity, which JSON does not have, as text."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
