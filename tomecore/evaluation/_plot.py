"""Plot accuracy against speed. Needs matplotlib (``tomecore[cli]``), but no display."""

from __future__ import annotations

from pathlib import Path

from tomecore.core.checks import check_writable
from tomecore.evaluation._result import Result

__all__ = ["draw"]


def draw(result: Result, path: Path | str, title: str = "") -> None:
    """Write a plot with one point for each r; without labels it shows agreement instead of accuracy.

    If there are too few images to time (``Result.timed``), it shows the arithmetic limit instead of speed.

    Args:
        result: the result of :func:`tomecore.evaluation.evaluate`.
        path: the file to write; its ending decides the format (.png, .svg, .pdf).
        title: title above the plot.

    Raises:
        ArgumentValueError: ``path`` is a folder, or its folder does not exist.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_writable(path, "path")
    labelled = result.rows[0].top1 is not None
    timed = result.rows[0].images_per_second is not None
    points = [
        (
            (row.images_per_second if timed else row.limit) or 0.0,
            row.agreement if row.top1 is None else row.top1,
            row.r,
        )
        for row in result.rows
    ]
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    across, up = [x for x, _, _ in points], [100 * y for _, y, _ in points]
    axes.plot(across, up, color="0.7", zorder=1)
    axes.scatter(across, up, color=["0.2", *["tab:blue"] * (len(points) - 1)], zorder=2)
    for place, (x, y, r) in enumerate(zip(across, up, [r for *_, r in points], strict=True)):
        text = "unpatched" if r == 0 else f"r={r}"
        offset = (0, -16 if place % 2 else 8)  # neighbours are often close
        axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", ha="center")
    axes.margins(x=0.15, y=0.2)
    axes.set_xlim(left=0)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    axes.set_xlabel("images per second" if timed else "speed-up that the arithmetic allows")
    axes.set_ylabel("top-1 accuracy, %" if labelled else "agreement with the unpatched model, %")
    axes.grid(alpha=0.3)
    axes.set_title(title.replace("$", r"\$"), fontsize="medium")
    figure.savefig(path, dpi=150)
