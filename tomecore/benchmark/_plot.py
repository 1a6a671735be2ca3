"""Plot images per second against r: the model unpatched, merging, and at the limit of the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tomecore.benchmark._measure import Measurement
from tomecore.core.checks import check_writable

__all__ = ["draw"]

_NAMES = {
    "merging": "tomecore",
    "dropping": "free-drop (no merging at all)",
    "published": "published form (eager attention)",
}


def draw(cells: Sequence[Measurement], path: Path, *, title: str | None = None) -> None:
    """Draw cells of one model into one plot, with a panel for each batch size; needs matplotlib.

    Args:
        cells: the same model at several r; an r that is not an int is drawn at its mean per layer.
        path: the file to write; its ending decides the format.
        title: title above the plot; None: the model's name and how it ran.

    Raises:
        ArgumentValueError: ``path`` is a folder, or its folder does not exist.
    """
    check_writable(path, "path")
    from matplotlib.figure import Figure

    batches = sorted({cell.batch for cell in cells})
    figure = Figure(figsize=(1 + 4.2 * len(batches), 3.8), layout="constrained")
    axes = figure.subplots(1, len(batches), squeeze=False)[0]
    for axis, batch in zip(axes, batches, strict=True):
        here = [cell for cell in cells if cell.batch == batch]
        _panel(axis, sorted(here, key=_mean_r), batch)
    first = cells[0]
    how = f"{first.image[0]}x{first.image[1]}, {first.dtype}, {first.device}"
    figure.suptitle(title or f"{first.model}, {how}")
    figure.savefig(path, dpi=120)


def _panel(axis: Any, cells: list[Measurement], batch: int) -> None:
    r = [0.0, *(_mean_r(cell) for cell in cells)]
    before = [cell.images_per_second["unpatched"] for cell in cells]
    base = sum(before) / len(before)
    axis.axhline(base, color="0.5", linewidth=1, label="unpatched")
    axis.plot(r, [base, *(base * cell.limit for cell in cells)], "k--", linewidth=1, label="limit")
    for name, label in _NAMES.items():
        if all(name in cell.images_per_second for cell in cells):
            # Use the ratio within each run, because the machine drifts between runs.
            speed = [
                base * cell.images_per_second[name] / cell.images_per_second["unpatched"]
                for cell in cells
            ]
            start = [r[0], *r[1:]] if name != "published" else r[1:]
            axis.plot(start, [base, *speed][-len(start) :], marker="o", markersize=4, label=label)
    axis.set_xlabel("tokens merged per layer, r")
    axis.set_ylabel("images per second")
    axis.set_title(f"batch {batch}")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)


def _mean_r(cell: Measurement) -> float:
    if isinstance(cell.r, int):
        return float(cell.r)
    if isinstance(cell.r, tuple):
        return float(cell.r[0])
    return float(cell.tokens - cell.tokens_left)
