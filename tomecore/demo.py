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

from tomecore import benchmark, digits, parity
from tomecore.running import evaluating, predict, to_numpy, to_tensor
from tomecore.schedule import R
from tomecore.visualization import make_visualization

__all__ = ["SCHEDULES", "Result", "Row", "draw", "run"]

#: what the demo shows: unpatched, then these
SCHEDULES: tuple[R, ...] = (8, 13, 16, (16, -1.0))

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


def build(framework: str) -> Any:
    """The trained digits ViT of ``tomecore.models``, in evaluation mode, from the one weights file."""
    from safetensors.numpy import load_file

    stored = {n: v.astype(np.float32) for n, v in load_file(digits.weights_path()).items()}
    layout = {"torch": "timm", "paddle": "plsc"}[framework]
    module = importlib.import_module(f"tomecore.models.{framework}")
    model = module.VisionTransformer.from_config(digits.DIGITS_VIT)
    parity.load_arrays(model, parity.convert_weights(stored, source="timm", target=layout))
    model.eval()
    return model


def run(
    frameworks: Sequence[str],
    *,
    schedules: Sequence[R] = SCHEDULES,
    batch: int = 32,
    rounds: int = 7,
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
    rows: list[Row] = []
    models = {}
    for framework in frameworks:
        models[framework] = build(framework)
        rows += _measure(
            framework, models[framework], schedules, images, labels, batch, rounds, progress
        )
    reports = []
    if len(models) == 2:
        for r in schedules:
            progress(f"comparing the frameworks, r={r}")
            for model in models.values():
                model.r = r
            model_a, model_b = models.values()
            reports.append((r, parity.compare(model_a, model_b, images)))
    result = Result(tuple(rows), tuple(reports), len(images), batch, _machine(frameworks))
    return result, models


def steps(frameworks: Sequence[str], schedules: Sequence[R] = SCHEDULES) -> int:
    """How often :func:`run` calls ``progress``."""
    compared = len(schedules) if len(frameworks) == 2 else 0
    return len(frameworks) * (1 + 2 * len(schedules)) + compared


def _measure(
    framework: str,
    model: Any,
    schedules: Sequence[R],
    images: np.ndarray,
    labels: np.ndarray,
    batch: int,
    rounds: int,
    progress: Progress,
) -> list[Row]:
    """Rows of one framework; leaves ``model`` patched."""
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    unpatched = build(framework)
    dropping = benchmark.free_drop(adapter.apply_patch(build(framework)))

    progress(f"{framework}: accuracy, unpatched")
    right = [(predict(model, images).argmax(-1) == labels).mean()]
    adapter.apply_patch(model, trace_source=True)
    left = []
    for r in schedules:
        progress(f"{framework}: accuracy, r={r}")
        model.r = r
        right.append((predict(model, images).argmax(-1) == labels).mean())
        left.append(model.tome.tokens[-1])
    tokens = (digits.DIGITS_VIT["img_size"] // digits.DIGITS_VIT["patch_size"]) ** 2 + 1

    x = to_tensor(model, np.resize(images, (batch, *images.shape[1:])))
    rows, base_speeds = [], []
    for r, accuracy, remaining in zip(schedules, right[1:], left, strict=True):
        progress(f"{framework}: speed, r={r}")
        model.r = dropping.r = r
        calls = {
            "unpatched": lambda: unpatched(x),
            "merging": lambda: model(x),
            "dropping": lambda: dropping(x),
        }
        with evaluating(unpatched), evaluating(model), evaluating(dropping):
            timed = list(benchmark.interleave(calls, rounds))
        base_speeds += [batch / seconds["unpatched"] for seconds in timed]
        limit = benchmark.arithmetic_limit(model, tokens, r)
        speedup = benchmark.median_ratio(timed, "unpatched", "merging")
        rows.append(
            Row(
                framework,
                r,
                remaining,
                float(accuracy),
                statistics.median(batch / seconds["merging"] for seconds in timed),
                speedup,
                limit,
                speedup / limit,
                benchmark.median_ratio(timed, "merging", "dropping") - 1,
            )
        )
    first = Row(framework, None, tokens, float(right[0]), statistics.median(base_speeds))
    return [first, *rows]


def draw(model: Any, path: Path, r: R = 16, count: int = 6) -> None:
    """Write a picture of ``count`` held-out digits and of what merging made of them.

    Args:
        model: a patched model, with ``trace_source``.
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
    columns: list[list[np.ndarray]] = []
    gray = images[:, 0] - images.min((1, 2, 3))[:, None, None]
    gray = (gray / gray.max((1, 2), keepdims=True) * 255).astype(np.uint8)
    for depth in (3, 6, 9, 12):
        model.r = _first_layers(r, depth)
        predict(model, images)
        sources = to_numpy(model.tome.source)
        cells = []
        for picture, source in zip(gray, sources, strict=True):
            shown = np.repeat(np.kron(picture, np.ones((zoom, zoom), np.uint8))[..., None], 3, -1)
            cells.append((shown, make_visualization(shown, source, patch_size=patch)))
        if not columns:
            columns.append([shown for shown, _ in cells])
        columns.append([painted for _, painted in cells])
    model.r = r
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


def _first_layers(r: R, depth: int) -> list[int]:
    """The schedule ``r`` cut off after ``depth`` layers."""
    from tomecore.schedule import parse_r

    return parse_r(digits.DIGITS_VIT["depth"], r)[:depth]


def _machine(frameworks: Sequence[str]) -> dict[str, str]:
    names = {"torch": ("torch",), "paddle": ("paddlepaddle", "paddlepaddle-gpu")}
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for distribution in ("tomecore", "numpy", *(n for f in frameworks for n in names[f])):
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
