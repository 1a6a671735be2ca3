"""The main job: one trained ViT on held-out digits, in torch and in Paddle, unpatched and merging.

    result, models = run(["torch", "paddle"])
    draw_digits(models["torch"], Path("digits.png"))
    draw_photo("torch", Path("photo.png"))

The tools do the work: ``tomecore.benchmark`` times the model unpatched, merging and dropping tokens in turn,
and ``tomecore.parity`` compares the two frameworks decision by decision. The accuracy comes from the outputs
of the same comparison, on images never used in training. ``cli/demo.py`` shows the result.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from tomecore import benchmark, parity
from tomecore.frameworks import RUNTIMES, predict, to_numpy
from tomecore.loading import adapter_of, load
from tomecore.loading.images import Preprocess
from tomecore.models import digits
from tomecore.schedule import R, as_data
from tomecore.visualization import draw_strip, follow_images, pixels_to_draw, visualize

__all__ = ["SCHEDULES", "DemoResult", "DemoRow", "draw_digits", "draw_photo", "run", "steps"]

#: the schedules that the demo shows after the unpatched model
SCHEDULES: tuple[R, ...] = (8, 16, (16, -1))
#: layers that are drawn, from 0
_LAYERS = (2, 5, 8, 11)

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
    """Measure the accuracy and speed of the digits model at each r; return them and the patched models.

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


def draw_digits(model: Any, path: Path, r: R = 16, count: int = 4) -> None:
    """Draw ``count`` held-out digits, a row each, and next to them their merged groups after some layers.

    Args:
        model: a patched model.
        path: the file to write; its ending decides the format.
        r: the schedule to draw.
        count: number of digits to draw: 0, 1, 2 and so on, one of each, at most 10.
    """
    images, labels = digits.load("test")
    images = images[[int(np.flatnonzero(labels == digit)[0]) for digit in range(count)]]
    preprocess = Preprocess(mean=(digits.MEAN,), std=(digits.STD,))
    pixels = [pixels_to_draw(image, preprocess, scale=4) for image in images]
    names = [f"digit {digit}" for digit in range(count)]
    merged = follow_images(model, images, pixels, names, [r])
    title = "Handwritten digits: the tokens that a trained ViT merges"
    draw_strip(merged, _LAYERS, title=title).save(path)


def draw_photo(framework: str, path: Path, r: R = 16) -> None:
    """Draw a photograph, and its merged groups after some layers of a ViT-Ti/16 with random weights.

    The photograph is china.jpg of scikit-learn (CC BY 2.0, danielbuechele). With random weights, groups
    follow colour and position; with trained ones they also follow what is shown.

    Args:
        framework: "torch" or "paddle".
        path: the file to write; its ending decides the format.
        r: the schedule to draw.
    """
    visualize(
        _random_vit(framework),
        files("sklearn.datasets") / "images" / "china.jpg",
        r=r,
        layers=_LAYERS,
        title="A photograph in a ViT with random weights: patches of similar colour merge",
        save=path,
    )


def _random_vit(framework: str) -> Any:
    """Return a ViT-Ti/16 with random weights, the same in every framework."""
    module = importlib.import_module(f"tomecore.models.{framework}")
    sizes = {"img_size": 224, "patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    # The frameworks have other defaults for these two.
    model = module.VisionTransformer.from_config({**sizes, "qkv_bias": True, "norm_eps": 1e-6})
    layout = RUNTIMES[framework].layout
    own = {name: to_numpy(value) for name, value in model.state_dict().items()}
    weights = parity.convert_weights(own, source=layout, target="timm")
    rng = np.random.default_rng(0)
    for name in sorted(weights):
        shape = weights[name].shape
        if len(shape) > 1:
            found = rng.normal(0, 0.02, shape)
        else:
            found = np.zeros(shape) if name.endswith("bias") else np.ones(shape)  # of norms
        weights[name] = found.astype(np.float32)
    return parity.load_arrays(model, parity.convert_weights(weights, source="timm", target=layout))
