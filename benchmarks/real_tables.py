"""Tables of the cells of :mod:`real`: paired differences with their standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import NamedTuple

from real_measure import Cell
from rich import box
from rich.console import Console
from rich.table import Table

from tomecore import matching

BASE = "tome"
#: the order of the rows; a form of a matching, "pitome, pure", follows the matching
ORDER = matching.names()
#: kind -> its numbers, and their heads
METRICS = {
    "images": {"class": "class", "patch": "patch", "saliency": "map"},
    "probe": {"agreement": "agreement", "accuracy": "accuracy"},
}
NOTE = """class, patch: cosine with the unpatched model, higher is better. map: mean absolute error of the
saliency map, which is from 0 to 1, lower is better. agreement: with the probe's class for the
unpatched model. Differences are means of paired differences ± standard error over images; *: beyond
two standard errors. Ranks within two standard errors mean nothing."""


class Paired(NamedTuple):
    """The mean of paired differences, and its standard error."""

    mean: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether the difference is beyond two standard errors."""
        return abs(self.mean) > 2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}{'*' if self.clear else ''}"


class Sheet(NamedTuple):
    """A table: its title, heads, and rows of text."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def paired(values: list[float], base: list[float]) -> Paired:
    """Return the mean of ``values - base`` over the same images, and its standard error.

    Raises:
        ValueError: there are not as many values as in ``base``, or fewer than two.
    """
    if len(values) != len(base) or len(values) < 2:
        raise ValueError(
            f"`values` and `base` must be of the same images, at least two; got {len(values)} and {len(base)}"
        )
    differences = [one - other for one, other in zip(values, base, strict=True)]
    return Paired(
        statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(values))
    )


def find(cells: list[Cell], kind: str, speedup: float, schedule: str, matching: str) -> Cell | None:
    """Return a cell, or None if it was not measured."""
    wanted = (kind, speedup, schedule, matching)
    for cell in cells:
        if (cell["kind"], cell["speedup"], cell["schedule"], cell["matching"]) == wanted:
            return cell
    return None


def groups(cells: list[Cell], kind: str) -> list[tuple[float, str]]:
    """Return the measured pairs of speed-up and schedule."""
    return sorted(
        {(one["speedup"], one["schedule"]) for one in cells if one["kind"] == kind}
        - {(1.0, "none")}
    )


def place(cell: Cell) -> tuple[int, str]:
    """Return what rows are sorted by."""
    name = cell["matching"]
    first = name.partition(",")[0]
    return ORDER.index(first) if first in ORDER else len(ORDER), name


def matching_sheets(cells: list[Cell], kind: str) -> Iterator[Sheet]:
    """Yield a table of all matchings for each speed-up and schedule, compared with ToMe."""
    metrics = METRICS[kind]
    for speedup, schedule in groups(cells, kind):
        at = [c for c in cells if (c["speedup"], c["schedule"]) == (speedup, schedule)]
        mine = sorted((cell for cell in at if cell["kind"] == kind), key=place)
        base = find(at, kind, speedup, schedule, BASE)
        timed = {c["matching"]: f"{c['measured']:.2f}x" for c in at if c["kind"] == "speed"}
        rows = []
        for cell in mine:
            row = [cell["matching"]]
            for name in metrics:
                row.append(f"{statistics.fmean(cell[name]):.4f}")
                same = cell is base or base is None
                row.append("" if same else str(paired(cell[name], base[name])))
            rows.append(row + ([timed.get(cell["matching"], "")] if timed else []))
        heads = ["matching"]
        for head in metrics.values():
            heads += [head, "to ToMe"]
        count = len(mine[0][next(iter(metrics))])
        title = f"{kind}: {speedup:g}x, {schedule}, arithmetic limit {mine[0]['limit']:.2f}x, n = {count}"
        yield Sheet(title, heads + (["speed"] if timed else []), rows)


def schedule_sheet(cells: list[Cell], kind: str) -> Sheet | None:
    """Return the paired differences of the ratio to the constant schedule; None without such pairs."""
    metrics, rows = METRICS[kind], []
    for cell in sorted(cells, key=place):
        if cell["kind"] != kind or cell["schedule"] != "ratio":
            continue
        base = find(cells, kind, cell["speedup"], "constant", cell["matching"])
        if base is not None:
            found = [str(paired(cell[name], base[name])) for name in metrics]
            rows.append([f"{cell['speedup']:g}x", cell["matching"], *found])
    rows.sort(key=lambda row: row[0])
    heads = ["speed-up", "matching", *metrics.values()]
    return Sheet(f"{kind}: ratio - constant", heads, rows) if rows else None


def sheets(cells: list[Cell]) -> Iterator[Sheet]:
    """Yield all tables."""
    for kind in METRICS:
        yield from matching_sheets(cells, kind)
        if (found := schedule_sheet(cells, kind)) is not None:
            yield found


def show(cells: list[Cell], *, markdown: bool = False) -> None:
    """Print all tables, 100 columns wide."""
    console = Console(width=100, highlight=False)
    for sheet in sheets(cells):
        if markdown:
            print(f"\n**{sheet.title}**\n")
            print(f"| {' | '.join(sheet.heads)} |\n|{'---|' * len(sheet.heads)}")
            for row in sheet.rows:
                print(f"| {' | '.join(row)} |")
            continue
        table = Table(
            title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
        )
        for column, head in enumerate(sheet.heads):
            table.add_column(head, justify="right" if column else "left", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for cell in cells:
        if cell["matching"] == "unpatched":
            accuracy = statistics.fmean(cell["accuracy"])
            print(f"\nprobe, unpatched: accuracy {accuracy:.4f}")
    print(f"\n{NOTE}")
