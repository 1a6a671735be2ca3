"""The output of commands: consoles, sentences, tables that fit their width, paths and errors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = [
    "FittingTable",
    "console",
    "counted",
    "errors",
    "number",
    "plain_table",
    "print_error",
    "print_path",
    "print_unreadable",
    "say",
    "short_labels",
]

#: columns if neither a terminal nor COLUMNS sets them: room for every table
_COLUMNS = 120
#: more columns than any table has
_WIDE = 10_000
#: characters of a label in a table; a longer one is explained below the table
_LABEL = 20
#: unreadable images that are listed at most
_NAMED = 10


class _Screen(Console):
    """A console that reads its width each time it prints, not when it is created."""

    @property  # type: ignore[misc]  # nothing sets it
    def size(self) -> ConsoleDimensions:
        """COLUMNS, else the width of the terminal; :data:`_COLUMNS` for a file or a pipe."""
        columns = os.environ.get("COLUMNS", "")
        if columns.isdecimal() and int(columns):
            return ConsoleDimensions(int(columns), 25)
        return super().size if self.on_terminal else ConsoleDimensions(_COLUMNS, 25)

    @property
    def on_terminal(self) -> bool:
        """Whether the output is a terminal; unlike ``is_terminal``, FORCE_COLOR does not change it."""
        return self.file.isatty()


console = _Screen()
errors = _Screen(stderr=True)


class FittingTable(Table):
    """A table that becomes several, one below the other, if it is wider than the console.

    So no cell is cut. Title and caption are text of the width of the console.

    Args:
        keys: the number of columns, from the first on, that say what a row is; they are in each part.
        settings: those of :class:`rich.table.Table`.
    """

    def __init__(self, keys: int = 1, **settings: Any) -> None:
        super().__init__(**settings)
        self.keys = keys

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the parts, and the caption."""
        if self.title:
            yield Text.from_markup(str(self.title), style="table.title")
        for columns in self._groups(console, options):
            yield self._part(columns)
        if self.caption:
            yield Text.from_markup(str(self.caption), style="table.caption")

    def _groups(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Return the columns of each part: as many as fit next to the keys, at least one."""
        wide = options.update(max_width=_WIDE)

        def fits(columns: list[int]) -> bool:
            width = Measurement.get(console, wide, self._part(columns)).maximum
            return width <= options.max_width

        keys = list(range(self.keys))
        groups = [list(keys)]
        for column in range(self.keys, len(self.columns)):
            if groups[-1] != keys and not fits([*groups[-1], column]):
                groups.append(list(keys))
            groups[-1].append(column)
        return groups

    def _part(self, columns: Sequence[int]) -> Table:
        """Return a table of some of the columns, without title and caption."""
        part = Table(box=self.box, collapse_padding=self.collapse_padding, pad_edge=self.pad_edge)
        chosen = [self.columns[index] for index in columns]
        for one in chosen:
            part.add_column(one.header, justify=one.justify, no_wrap=one.no_wrap)
        for row, cells in zip(self.rows, zip(*(one.cells for one in chosen)), strict=True):  # noqa: B905
            part.add_row(*cells, end_section=row.end_section)
        return part


def plain_table(**settings: Any) -> FittingTable:
    """Return a table in the style of all commands; for settings see :class:`FittingTable`."""
    return FittingTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, **settings)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "4 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def number(value: float | None, form: str, unit: str = "") -> str:
    """Return a cell of a table; a dash for None."""
    return "-" if value is None else format(value, form) + unit


def short_labels(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return labels that are short enough for a table, and lines that explain those that were replaced."""
    short: list[str] = []
    notes: list[str] = []
    for label in labels:
        if len(label) > _LABEL:
            notes.append(f"r{len(notes) + 1} = {label}")
            label = f"r{len(notes)}"
        short.append(label)
    return short, notes


def say(text: str, *, markup: bool = True) -> None:
    """Print a sentence: wrapped between words on a terminal, on one line in a file or a pipe."""
    console.print(text, markup=markup, highlight=False, soft_wrap=not console.on_terminal)


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
