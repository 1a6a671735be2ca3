"""The tables that ``tomecore bench`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tomecore.cli._output import number, plain_table, short_labels

if TYPE_CHECKING:
    from tomecore.benchmark import Measurement, Profile

__all__ = ["parts_of", "remark_on", "table_of"]

#: quartiles of the speed-up that differ by more than this factor say that something disturbs the machine
_STEADY = 1.25


def table_of(cells: list[Measurement], labels: Sequence[str], latency: bool) -> Table:
    """Return one row for each cell.

    Args:
        cells: of one model.
        labels: the r of each cell, as text.
        latency: milliseconds per image instead of images per second.
    """
    first = cells[0]
    how = "forward and backward" if first.train else "forward"
    how += "" if first.matching == "tome" else f", matching {first.matching}"
    how += ", the last block trimmed" if first.trim_last else ""
    if first.prop_attn is not True:
        how += f", sizes by {first.prop_attn}" if first.prop_attn else ", sizes not counted"
    memory = any(value for cell in cells for value in cell.peak_bytes.values())
    short, notes = short_labels(labels)
    table = plain_table(
        keys=2,
        title=escape(
            f"{first.model} at {first.image[0]}x{first.image[1]}, {first.tokens} tokens, "
            f"{first.dtype} on {first.device}, {first.mode}, {how}"
        ),
        caption=escape(
            "\n".join(
                [
                    *notes,
                    "limit: the speed-up that the arithmetic allows; free-drop: the speed-up of dropping "
                    "tokens instead of merging them, as if choosing and merging cost nothing; merge share: "
                    f"of the time of a forward pass; spread: quartiles of {first.rounds} rounds",
                ]
            )
        ),
    )
    unit = "ms per\nimage" if latency else "images\nper s"
    headings = ["batch", "r", "tokens\nleft", f"{unit}\nbefore", f"{unit}\nafter"]
    headings += ["speed-up", "spread", "limit", "% of\nlimit"]
    headings += ["free-\ndrop", "% of\nfree-drop", "merge\nshare"]
    for heading in headings + (["peak MiB\nbefore", "peak MiB\nafter"] if memory else []):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell, label in zip(cells, short, strict=True):
        speed = [cell.images_per_second[name] for name in ("unpatched", "merging")]
        shown = [f"{1e3 / s:.2f}" if latency else f"{s:.1f}" for s in speed]
        low, high = cell.speedup_quartiles
        row = [str(cell.batch), escape(label), str(cell.tokens_left), *shown]
        row += [f"[green]{cell.speedup:.2f}x[/green]", f"{low:.2f}-{high:.2f}"]
        row += [f"{cell.limit:.2f}x", f"{cell.limit_share:.0%}"]
        row += [f"{cell.drop_speedup:.2f}x", f"{cell.drop_share:.1%}"]
        row += [number(cell.merge_share, ".1%")]
        if memory:
            peaks = [cell.peak_bytes[name] for name in ("unpatched", "merging")]
            row += [number(None if peak is None else peak / 2**20, ".0f") for peak in peaks]
        table.add_row(*row)
    return table


def remark_on(quartiles: Sequence[tuple[float, float]]) -> str | None:
    """Return what to say if the rounds of a cell differ too much; ``quartiles``: those of its speed-up."""
    if all(high <= _STEADY * low for low, high in quartiles):
        return None
    return (
        "The rounds differ a lot (spread), so these numbers are uncertain: something else uses this machine. "
        "Measure again when it is idle, or with more --rounds"
    )


def parts_of(cell: Measurement, label: str, split: Profile) -> Table:
    """Return a table of the parts of the time of merging over free-drop; ``label``: the r, as text."""
    table = plain_table(
        title=escape(
            f"batch {cell.batch}, r = {label}: {split.merging * 1e3:.2f} ms merging, "
            f"{split.dropping * 1e3:.2f} ms dropping; the difference:"
        )
    )
    table.add_column("part", no_wrap=True)
    for heading in ("ms", "of the forward"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, seconds in sorted(split.parts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / split.merging:+.1%}")
    return table
