"""Plot images per second against r: one model merging tokens, between the unpatched model and its limits.

``matrix.py --plot`` draws it. Its background is transparent, and its colours are legible on light and
dark pages.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK = "#7a838d"
NAMES = {"tiny": "ViT-Ti/16", "small": "ViT-S/16", "base": "ViT-B/16"}
LIBRARIES = {"torch": "torch", "paddle": "paddlepaddle"}
#: form -> (its name in the legend, how it is drawn)
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "limit": (
        "limit of arithmetic: the speed-up if time were proportional to multiply-adds",
        {"color": INK, "linestyle": (0, (1, 1.6)), "linewidth": 2.2},
    ),
    "dropping": (
        "limit of this machine: the same model, which drops the tokens instead of merging them",
        {"color": "#d9822b", "linestyle": (0, (5, 2)), "linewidth": 1.8, "marker": "s"},
    ),
    "published": (
        "the published way of merging, in the same run",
        {"color": "#3a9d5d", "linewidth": 1.5, "marker": "^"},
    ),
    "merging": (
        "tomecore (bars: the middle half of the rounds)",
        {"color": "#2f7de1", "linewidth": 2.6, "marker": "o"},
    ),
    "unpatched": ("the model without merging", {"color": INK, "linewidth": 1.4}),
}


def draw(cells: Sequence[dict[str, Any]], path: Path, machine: dict[str, Any]) -> None:
    """Draw cells of one model in one file, with a panel for each batch size; needs matplotlib.

    Args:
        cells: the same model at several r, as ``matrix.py`` measures them.
        path: the file to write; its ending decides the format.
        machine: the machine, as ``tomecore.benchmark.machine`` describes it.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    batches = sorted({cell["batch"] for cell in cells})
    with mpl.rc_context({"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}):
        figure = Figure(figsize=(max(6.4, 5.2 * len(batches)), 5.4), layout="constrained")
        figure.set_facecolor("none")
        panels = figure.subplots(1, len(batches), squeeze=False)[0]
        for panel, batch in zip(panels, batches, strict=True):
            here = [cell for cell in cells if cell["batch"] == batch]
            _draw_panel(panel, sorted(here, key=lambda cell: cell["r"]), batch)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles[::-1],
            labels[::-1],
            loc="outside lower center",
            frameon=False,
            fontsize=10.5,
            title=_place(cells[0], machine),
            title_fontsize=10.5,
        )
        size = cells[0]["cell"][1]
        figure.suptitle(
            f"{NAMES.get(size, size)} runs faster when each layer merges r of its tokens",
            fontsize=14,
            fontweight="bold",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def _place(cell: dict[str, Any], machine: dict[str, Any]) -> str:
    framework, _, side, _, _, dtype = cell["cell"]
    version = machine.get(LIBRARIES[framework], "")
    threads, processor = machine.get("threads"), machine.get("processor")
    place = f"{threads} cores of a shared {processor}" if processor else cell["device"]
    return f"{side} x {side} pixels, {dtype}, {framework} {version}, {place}"


def _draw_panel(panel: Any, cells: list[dict[str, Any]], batch: int) -> None:
    # Ratios within a run are steady; the machine drifts between runs.
    base = statistics.median(cell["images_per_second"]["unpatched"] for cell in cells)
    ratios = {
        "limit": [cell["limit"] for cell in cells],
        "dropping": [cell["drop_speedup"] for cell in cells],
        "published": [cell["speedup"] / cell["ahead"]["published"] for cell in cells],
        "merging": [cell["speedup"] for cell in cells],
        "unpatched": [1.0 for _ in cells],
    }
    r = [0, *(cell["r"] for cell in cells)]
    for form, (label, style) in FORMS.items():
        speeds = [base, *(base * ratio for ratio in ratios[form])]
        panel.plot(r, speeds, label=label, markersize=6, **style)
    low = [base * (cell["speedup"] - cell["speedup_quartiles"][0]) for cell in cells]
    high = [base * (cell["speedup_quartiles"][1] - cell["speedup"]) for cell in cells]
    panel.errorbar(
        r[1:],
        [base * ratio for ratio in ratios["merging"]],
        yerr=[low, high],
        fmt="none",
        ecolor=FORMS["merging"][1]["color"],
        elinewidth=1.6,
        capsize=5,
    )
    for cell in cells:
        panel.annotate(
            f"{cell['speedup']:.2f}x",
            (cell["r"], base * cell["speedup"]),
            xytext=(9, -15),
            textcoords="offset points",
            color=FORMS["merging"][1]["color"],
            fontsize=11,
            fontweight="bold",
        )
    left = [cells[0]["tokens"], *(cell["tokens_left"] for cell in cells)]
    panel.set_xticks(r, [f"{one}\n({tokens})" for one, tokens in zip(r, left, strict=True)])
    panel.set_xlabel("r, tokens merged in each layer (tokens left after the last one)")
    panel.set_ylabel("images per second")
    panel.set_title(f"batch of {batch}" if batch > 1 else "one image at a time")
    panel.set_facecolor("none")
    panel.margins(y=0.08)
    panel.set_xlim(-0.06 * r[-1], 1.14 * r[-1])
    panel.tick_params(colors=INK)
    panel.grid(axis="y", color=INK, alpha=0.25, linewidth=0.7)
    panel.spines[["top", "right"]].set_visible(False)
