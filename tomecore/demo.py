"""The main job: one trained ViT on held-out digits, in torch and in Paddle, unpatched and merging.

    result, models = run(["torch", "paddle"])
    draw(models["torch"], Path("merged.png"))

The tools do the work: ``tomecore.benchmark`` times the model unpatched, merging and dropping tokens in turn,
and ``tomecore.parity`` compares the two frameworks decision by decision. The accuracy comes from the outputs
of the same comparison, on images never used in training. ``cli/demo.py`` shows the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomecore import benchmark, parity
from tomecore.frameworks import predict
from tomecore.loading import adapter_of, load
from tomecore.loading.images import Preprocess
from tomecore.models import digits
from tomecore.schedule import R, as_data
from tomecore.visualization import follow_images

__all__ = ["SCHEDULES", "DemoResult", "DemoRow", "draw", "run", "steps"]

#: the schedules that the demo shows after the unpatched model
SCHEDULES: tuple[R, ...] = (8, 16, (16, -1))
#: layers that are drawn
_LAYERS = (3, 6, 9, 12)
_GAP = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class DemoRow:
    """The numbers of one framework at one r.

    Args:
        framework: "torch" or "paddle".
        r: tokens merged per layer; None for the unpatched model.
        tokens: tokens left after the last layer.
        accuracy: share of held-out digits that are classified correctly.
        images_per_second: median of the interleaved rounds.
        speedup: over the unpatched model in the same round, median.
        limit: speedup that the arithmetic allows.
        limit_share: speedup over limit.
        merge_tax: extra time over dropping the tokens instead; 0.03 is 3 %.
    """

    framework: str
    r: R | None
    tokens: int
    accuracy: float
    images_per_second: float
    speedup: float | None = None
    limit: float | None = None
    limit_share: float | None = None
    merge_tax: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """All rows, and how far the frameworks agree (empty with one framework)."""

    rows: tuple[DemoRow, ...]
    parity: tuple[tuple[R, parity.Report], ...]
    images: int
    batch: int
    machine: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "parity": [{"r": as_data(r), **report.as_dict()} for r, report in self.parity],
            "images": self.images,
            "batch": self.batch,
            "machine": self.machine,
        }

    @property
    def identical_predictions(self) -> float:
        """Share of equal predictions, over all images and schedules."""
        return statistics.fmean(report.identical_predictions for _, report in self.parity)

    @property
    def identical_decisions(self) -> float:
        """Share of images whose merges are all the same, over all schedules."""
        return statistics.fmean(report.identical_decisions for _, report in self.parity)


def run(
    frameworks: Sequence[str],
    *,
    schedules: Sequence[R] = SCHEDULES,
    batch: int = 8,
    rounds: int = 5,
    limit_images: int | None = None,
    progress: Progress = lambda step: None,
) -> tuple[DemoResult, dict[str, Any]]:
    """Measure everything; return the result and the patched models by framework.

    Args:
        frameworks: any of "torch" and "paddle", installed.
        schedules: values of r to show.
        batch: images per forward pass when timing.
        rounds: interleaved timing rounds.
        limit_images: number of held-out images to use, from the first on; None: all.
        progress: called with a line of text before each step; :func:`steps` returns how many there are.
    """
    images, labels = (part[:limit_images] for part in digits.load("test"))
    models: dict[str, Any] = {}
    accuracy: dict[str, list[float]] = {}
    timed: dict[str, list[benchmark.Measurement]] = {}
    for framework in frameworks:
        loaded = load(f"digits:{framework}")
        progress(f"{framework}: accuracy, unpatched")
        accuracy[framework] = [_accuracy(predict(loaded.model, images), labels)]
        timed[framework] = []
        for r in schedules:
            progress(f"{framework}: speed, r={r}")
            timed[framework].append(benchmark.measure(loaded, r, batch=batch, rounds=rounds))
        models[framework] = adapter_of(framework).apply_patch(loaded.model)
    reports = []
    for r in schedules:
        progress(f"{' and '.join(models)}: accuracy, r={r}")
        for model in models.values():
            model.r = r
        if len(models) == 2:
            model_a, model_b = models.values()
            report = parity.compare(model_a, model_b, images)
            reports.append((r, report))
            outputs = list(report.outputs)
        else:
            outputs = [predict(model, images) for model in models.values()]
        for framework, output in zip(models, outputs, strict=True):
            accuracy[framework].append(_accuracy(output, labels))
    rows = [row for name in models for row in _rows(accuracy[name], timed[name])]
    result = DemoResult(tuple(rows), tuple(reports), len(images), batch, benchmark.machine())
    return result, models


def steps(frameworks: Sequence[str], schedules: Sequence[R] = SCHEDULES) -> int:
    """Return how often :func:`run` calls ``progress``."""
    return len(frameworks) * (1 + len(schedules)) + len(schedules)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(-1) == labels).mean())


def _rows(accuracy: Sequence[float], timed: Sequence[benchmark.Measurement]) -> Iterator[DemoRow]:
    """Yield the rows of one framework: the unpatched model, then each r that was timed."""
    speed = statistics.median(cell.images_per_second["unpatched"] for cell in timed)
    yield DemoRow(timed[0].framework, None, timed[0].tokens, accuracy[0], speed)
    for share, cell in zip(accuracy[1:], timed, strict=True):
        yield DemoRow(
            framework=cell.framework,
            r=cell.r,
            tokens=cell.tokens_left,
            accuracy=share,
            images_per_second=cell.images_per_second["merging"],
            speedup=cell.speedup,
            limit=cell.limit,
            limit_share=cell.limit_share,
            merge_tax=1 / cell.drop_share - 1,
        )


def draw(model: Any, path: Path, r: R = 16, count: int = 6) -> None:
    """Draw ``count`` held-out digits, a column each, and below them their merged groups after some layers.

    Args:
        model: a patched model.
        path: the file to write; its ending decides the format.
        r: the schedule to draw.
        count: number of digits to draw: 0, 1, 2 and so on, one of each, at most 10.
    """
    from PIL import Image

    images, labels = digits.load("test")
    images = images[[int(np.flatnonzero(labels == digit)[0]) for digit in range(count)]]
    preprocess = Preprocess(mean=(digits.MEAN,), std=(digits.STD,))
    pixels = [preprocess.pixels(image) for image in images]
    merged = follow_images(model, images, pixels, [""] * count, [r])
    rows = [merged.pixels]
    rows += [tuple(merged.painted(i, 0, layer) for i in range(count)) for layer in _LAYERS]
    gap = ((0, _GAP), (0, _GAP), (0, 0))
    cells = [[np.pad(cell, gap, constant_values=255) for cell in row] for row in rows]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in cells])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet[:-_GAP, :-_GAP]).save(path)
