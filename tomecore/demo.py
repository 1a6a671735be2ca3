"""The main job: one trained ViT on held-out digits, in torch and in Paddle, unpatched and merging.

This file computes; ``cli.py`` shows. The same weights run in both frameworks, accuracy is measured on
images never used in training, speed is interleaved with the unpatched model and with free-drop, and
the two frameworks are compared decision by decision.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomecore import benchmark, parity
from tomecore.frameworks import evaluating, predict, to_tensor
from tomecore.models import digits
from tomecore.schedule import R, tokens_per_layer
from tomecore.visualization import make_visualization, sources_by_layer

__all__ = ["SCHEDULES", "Result", "Row", "draw", "run"]

#: what the demo shows: unpatched, then these
SCHEDULES: tuple[R, ...] = (8, 16, (16, -1))

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One framework at one r.

    Args:
        framework: "torch" or "paddle".
        r: tokens merged per layer; None for the unpatched model.
        tokens: tokens left after the last layer.
        accuracy: share of held-out digits named right.
        images_per_second: median of the interleaved rounds.
        speedup: over the unpatched model in the same round, median.
        limit: what the arithmetic allows.
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
class Result:
    """All rows, and how far the frameworks agree (empty with one framework)."""

    rows: tuple[Row, ...]
    parity: tuple[tuple[R, parity.Report], ...]
    images: int
    batch: int
    machine: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "parity": [{"r": r, **report.as_dict()} for r, report in self.parity],
            "images": self.images,
            "batch": self.batch,
            "machine": self.machine,
        }

    @property
    def identical_predictions(self) -> float:
        """Share over all images and schedules."""
        return statistics.fmean(report.identical_predictions for _, report in self.parity)

    @property
    def identical_decisions(self) -> float:
        """Share of images whose every merge is the same, over all schedules."""
        return statistics.fmean(report.identical_decisions for _, report in self.parity)


def run(
    frameworks: Sequence[str],
    *,
    schedules: Sequence[R] = SCHEDULES,
    batch: int = 8,
    rounds: int = 5,
    limit_images: int | None = None,
    progress: Progress = lambda step: None,
) -> tuple[Result, dict[str, Any]]:
    """Measure everything; returns the result and the patched models by framework.

    Args:
        frameworks: any of "torch" and "paddle", installed.
        schedules: values of r to show.
        batch: images per forward pass when timing.
        rounds: interleaved timing rounds.
        limit_images: use only the first so many held-out images; None: all.
        progress: called with a line before each step; :func:`steps` says how many there are.
    """
    images, labels = digits.load("test")
    images, labels = images[:limit_images], labels[:limit_images]
    models, unpatched, accuracy = {}, {}, {}
    for framework in frameworks:
        progress(f"{framework}: accuracy, unpatched")
        unpatched[framework] = digits.build(framework)
        accuracy[framework] = [_accuracy(predict(unpatched[framework], images), labels)]
        adapter = importlib.import_module(f"tomecore.adapters.{framework}")
        models[framework] = adapter.apply_patch(digits.build(framework))
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
    rows: list[Row] = []
    for framework in frameworks:
        x = np.resize(images, (batch, *images.shape[1:]))
        timed = _time(
            framework, unpatched[framework], models[framework], schedules, x, rounds, progress
        )
        rows += _rows(framework, models[framework], schedules, accuracy[framework], timed, batch)
    result = Result(tuple(rows), tuple(reports), len(images), batch, _machine(frameworks))
    return result, models


def steps(frameworks: Sequence[str], schedules: Sequence[R] = SCHEDULES) -> int:
    """How often :func:`run` calls ``progress``."""
    return len(frameworks) * (1 + len(schedules)) + len(schedules)


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    return float((outputs.argmax(-1) == labels).mean())


def _time(
    framework: str,
    unpatched: Any,
    model: Any,
    schedules: Sequence[R],
    images: np.ndarray,
    rounds: int,
    progress: Progress,
) -> list[list[dict[str, float]]]:
    """Seconds by schedule and round: unpatched, merging and dropping take turns."""
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    dropping = benchmark.free_drop(adapter.apply_patch(digits.build(framework)))
    x = to_tensor(model, images)
    calls = {
        "unpatched": lambda: unpatched(x),
        "merging": lambda: model(x),
        "dropping": lambda: dropping(x),
    }
    timed = []
    for r in schedules:
        progress(f"{framework}: speed, r={r}")
        model.r = dropping.r = r
        with evaluating(unpatched), evaluating(model), evaluating(dropping):
            timed.append(list(benchmark.interleave(calls, rounds)))
    return timed


def _rows(
    framework: str,
    model: Any,
    schedules: Sequence[R],
    accuracy: Sequence[float],
    timed: Sequence[list[dict[str, float]]],
    batch: int,
) -> list[Row]:
    def speed(call: str, rounds: list[dict[str, float]]) -> float:
        return statistics.median(batch / seconds[call] for seconds in rounds)

    protected, depth = model.tome.protected, digits.DIGITS_VIT["depth"]
    tokens = (digits.DIGITS_VIT["img_size"] // digits.DIGITS_VIT["patch_size"]) ** 2 + protected
    every_round = [seconds for rounds in timed for seconds in rounds]
    rows = [Row(framework, None, tokens, accuracy[0], speed("unpatched", every_round))]
    for r, right, rounds in zip(schedules, accuracy[1:], timed, strict=True):
        limit = model.tome.arithmetic.limit(tokens, r)
        speedup = benchmark.median_ratio(rounds, "unpatched", "merging")
        rows.append(
            Row(
                framework,
                r,
                tokens_per_layer(depth, r, tokens, protected)[-1],
                right,
                speed("merging", rounds),
                speedup,
                limit,
                speedup / limit,
                benchmark.median_ratio(rounds, "merging", "dropping") - 1,
            )
        )
    return rows


def draw(model: Any, path: Path, r: R = 16, count: int = 6) -> None:
    """Write a picture of ``count`` held-out digits and of what merging made of them.

    Args:
        model: a patched model.
        path: where to; the ending decides the format.
        r: the schedule to draw.
        count: digits to show, one of each kind as far as there are kinds.
    """
    from PIL import Image

    images, labels = digits.load("test")
    images = images[[int(np.flatnonzero(labels == digit)[0]) for digit in range(count)]]
    zoom, gap = 4, 8
    patch = digits.DIGITS_VIT["patch_size"] * zoom
    model.r = r
    gray = images[:, 0] - images.min((1, 2, 3))[:, None, None]
    gray = (gray / gray.max((1, 2), keepdims=True) * 255).astype(np.uint8)
    shown = [np.repeat(np.kron(g, np.ones((zoom, zoom), np.uint8))[..., None], 3, -1) for g in gray]
    columns = [shown]
    sources = sources_by_layer(model, images)
    for depth in (3, 6, 9, 12):
        columns.append(
            [make_visualization(*one, patch) for one in zip(shown, sources[depth - 1], strict=True)]
        )
    side = columns[0][0].shape[0]
    canvas = np.full(
        (len(columns) * (side + gap) - gap, count * (side + gap) - gap, 3), 255, dtype=np.uint8
    )
    for row, cells_of in enumerate(columns):
        for column, cell in enumerate(cells_of):
            top, start = row * (side + gap), column * (side + gap)
            canvas[top : top + side, start : start + side] = cell
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(path)


def _machine(frameworks: Sequence[str]) -> dict[str, str]:
    names = {"torch": ("torch",), "paddle": ("paddlepaddle", "paddlepaddle-gpu")}
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for distribution in ("tomecore", "numpy", *(n for f in frameworks for n in names[f])):
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
