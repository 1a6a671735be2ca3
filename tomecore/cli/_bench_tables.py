"""The tables that ``tomecore bench`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from tomecore.cli._shared import number, plain_table

if TYPE_CHECKING:
    from tomecore.benchmark import Measurement, Profile

__all__ = ["parts_of", "table_of"]


def table_of(cells: list[Measurement], latency: bool) -> Table:
    """Return one row for each cell; ``latency``: milliseconds per image instead of images per second."""
    first = cells[0]
    how = "forward and backward" if first.train else "forward"
    how += ", the last block trimmed" if first.trim_last else ""
    if first.prop_attn is not True:
        how += f", sizes by {first.prop_attn}" if first.prop_attn else ", sizes not counted"
    memory = any(value for cell in cells for value in cell.peak_bytes.values())
    table = plain_table(
        title=f"{first.model} at {first.image[0]}x{first.image[1]}, {first.tokens} tokens, "
        f"{first.dtype} on {first.device}, {first.mode}, {how}",
        caption="limit: what the arithmetic allows; free-drop: tokens dropped by a slice, what the machine "
        "gives; spread: quartiles of the rounds; random weights unless --pretrained",
    )
    unit = "ms per\nimage" if latency else "images\nper s"
    headings = [
        "batch",
        "r",
        "tokens\nleft",
        f"{unit}\nbefore",
        f"{unit}\nafter",
        "speed-up",
        "spread",
    ]
    headings += ["limit", "% of\nlimit", "free-\ndrop", "% of\nfree-drop", "merge\nshare"]
    for heading in headings + (["peak MiB\nbefore", "peak MiB\nafter"] if memory else []):
        table.add_column(heading, justify="right", no_wrap=True)
    for cell in cells:
        speed = [cell.images_per_second[name] for name in ("unpatched", "merging")]
        shown = [f"{1e3 / s:.2f}" if latency else f"{s:.1f}" for s in speed]
        low, high = cell.speedup_quartiles
        row = [str(cell.batch), str(cell.r), str(cell.tokens_left), *shown]
        row += [
            f"[green]{cell.speedup:.2f}x[/green]",
            f"{low:.2f}-{high:.2f}",
            f"{cell.limit:.2f}x",
        ]
        row += [f"{cell.limit_share:.0%}", f"{cell.drop_speedup:.2f}x", f"{cell.drop_share:.1%}"]
        row += [number(cell.merge_share, ".1%")]
        if memory:
            peaks = [cell.peak_bytes[name] for name in ("unpatched", "merging")]
            row += [number(None if peak is None else peak / 2**20, ".0f") for peak in peaks]
        table.add_row(*row)
    return table


def parts_of(cell: Measurement, split: Profile) -> Table:
    """Return a table of the parts of the time of merging over free-drop."""
    table = plain_table(
        title=f"batch {cell.batch}, r={cell.r}: {split.merging * 1e3:.2f} ms merging, "
        f"{split.dropping * 1e3:.2f} ms dropping; the difference:"
    )
    table.add_column("part")
    for heading in ("ms", "of the forward"):
        table.add_column(heading, justify="right")
    for name, seconds in sorted(split.parts.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / split.merging:+.1%}")
    return table
