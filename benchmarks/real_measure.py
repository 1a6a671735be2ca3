"""Measure what merging costs on a real model, image by image: cells of :mod:`real`.

A cell is one matching with one schedule at one speed-up. Both schedules reach the same arithmetic limit.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from real_images import Cifar
from real_model import PATCH, SIDE, SaliencyViT
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import tomecore.adapters.torch as tome
from tomecore.benchmark import interleave, median_ratio, quartiles
from tomecore.schedule import Ratio, for_speedup

Cell = dict[str, Any]
TOKENS = (SIDE // PATCH) ** 2 + 1
#: how far the arithmetic limits of two schedules may be apart
APART = 0.01


@dataclass(frozen=True)
class Plan:
    """A schedule at a speed-up.

    Args:
        speedup: the requested arithmetic limit.
        schedule: "constant" for ``for_speedup(rule="constant")``, "ratio" for ``Ratio``.
        limit: the arithmetic limit that it reaches.
        merged: tokens that each layer merges.
        ratio: the share of the tokens that each layer keeps; None for "constant".
    """

    speedup: float
    schedule: str
    limit: float
    merged: list[int]
    ratio: float | None = None

    def cell(self, kind: str, matching: str) -> Cell:
        """Return a cell without results."""
        left = TOKENS - np.cumsum(self.merged)
        return {
            "kind": kind,
            "speedup": self.speedup,
            "schedule": self.schedule,
            "matching": matching,
            "limit": round(self.limit, 4),
            "ratio": self.ratio,
            "tokens": left.tolist(),
        }


def plans(model: Any, speedups: list[float]) -> list[Plan]:
    """Return both schedules for each speed-up.

    Raises:
        ValueError: the arithmetic limits of the two are more than 1 % apart.
    """
    arithmetic, found = model.tome.arithmetic, []
    layers, protected = len(arithmetic.layers), arithmetic.protected
    for speedup in speedups:
        even = for_speedup(model, speedup, rule="constant")(layers, TOKENS, protected)
        target = arithmetic.limit(TOKENS, even)
        low, high = 0.5, 1.0  # the limits of these are above and below the target
        for _ in range(40):
            middle = (low + high) / 2
            above = arithmetic.limit(TOKENS, Ratio(middle)) >= target
            low, high = (middle, high) if above else (low, middle)
        near = min(low, high, key=lambda q: abs(arithmetic.limit(TOKENS, Ratio(q)) - target))
        limit = arithmetic.limit(TOKENS, Ratio(near))
        if abs(limit / target - 1) > APART:
            raise ValueError(
                f"`speedup` {speedup}: the constant rule reaches {target:.3f}, and the nearest "
                f"Ratio({near:.4f}) {limit:.3f}, more than {APART:.0%} apart; choose another speed-up"
            )
        falling = Ratio(near)(layers, TOKENS, protected)
        found += [
            Plan(speedup, "constant", target, even),
            Plan(speedup, "ratio", limit, falling, near),
        ]
    return found


def batches(pixels: Tensor, size: int) -> Iterator[Tensor]:
    return iter(pixels.split(size))


@torch.no_grad()
def read(model: SaliencyViT, pixels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the tokens (N, 257, 384) and the saliency maps (N, 224, 224) of all images."""
    tokens = [model.backbone(pixel_values=x).last_hidden_state for x in batches(pixels, size)]
    return torch.cat(tokens), torch.cat([model.decode(one) for one in tokens])


def losses(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> dict[str, list[float]]:
    """Return what the tokens and maps of each image differ by from those of the unpatched model.

    Returns:
        "class": cosine of the class tokens. "patch": mean cosine of the patches. "saliency": mean absolute
        error of the map. One number for each image.
    """
    cosine = F.cosine_similarity(found[0].double(), expected[0].double(), dim=-1)
    error = (found[1] - expected[1]).abs().double().mean((1, 2))
    values = {"class": cosine[:, 0], "patch": cosine[:, 1:].mean(1), "saliency": error}
    return {name: [round(one, 6) for one in array.tolist()] for name, array in values.items()}


class OnImages:
    """Compare the outputs of a merging model with the unpatched ones; ``batch`` images at a time."""

    kind = "images"

    def __init__(self, model: SaliencyViT, pixels: Tensor, batch: int) -> None:
        self.model, self.pixels, self.batch = tome.apply_patch(model), pixels, batch
        self.expected: tuple[Tensor, Tensor] | None = None

    def __call__(self, plan: Plan, matchings: list[str]) -> Iterator[Cell]:
        """Yield the cell of each matching."""
        if self.expected is None:
            self.model.r = 0
            self.expected = read(self.model, self.pixels, self.batch)
        for matching in matchings:
            tome.apply_patch(self.model, r=plan.merged, matching=matching)
            found = read(self.model, self.pixels, self.batch)
            yield plan.cell(self.kind, matching) | losses(found, self.expected)


class OnProbe:
    """Classify features of a merging model with a linear probe that was fitted on unpatched ones.

    Features are the class token and the mean patch. The probe is a ridge classifier, whose penalty is
    chosen by leave-one-out on the images that it is fitted on.
    """

    kind = "probe"

    def __init__(self, model: SaliencyViT, cifar: Cifar, batch: int) -> None:
        self.model, self.cifar, self.batch = tome.apply_patch(model), cifar, batch
        self.probe: Any = None

    @torch.no_grad()
    def features(self, pixels: Tensor) -> np.ndarray:
        """Return (N, 768)."""
        tokens = [
            self.model.backbone(pixel_values=x).last_hidden_state
            for x in batches(pixels, self.batch)
        ]
        return torch.cat([torch.cat([one[:, 0], one[:, 1:].mean(1)], 1) for one in tokens]).numpy()

    def fit(self) -> Cell:
        """Fit the probe, and return the cell of the unpatched model."""
        self.model.r = 0
        self.probe = make_pipeline(
            StandardScaler(), RidgeClassifierCV(alphas=np.logspace(0, 5, 11))
        )
        self.probe.fit(self.features(self.cifar.fit), self.cifar.fit_labels)
        self.expected = self.probe.predict(self.features(self.cifar.test))
        return self.results(self.expected)

    def results(self, predicted: np.ndarray) -> dict[str, list[int]]:
        same = {"agreement": self.expected, "accuracy": self.cifar.test_labels}
        return {name: (predicted == one).astype(int).tolist() for name, one in same.items()}

    def __call__(self, plan: Plan, matchings: list[str]) -> Iterator[Cell]:
        """Yield the cell of each matching."""
        if self.probe is None:
            unpatched = Plan(1.0, "none", 1.0, [0] * 12)
            yield unpatched.cell(self.kind, "unpatched") | self.fit()
        for matching in matchings:
            tome.apply_patch(self.model, r=plan.merged, matching=matching)
            predicted = self.probe.predict(self.features(self.cifar.test))
            yield plan.cell(self.kind, matching) | self.results(predicted)


class OnClock:
    """Time all matchings of a plan and the unpatched model in turn."""

    kind = "speed"

    def __init__(self, model: SaliencyViT, pixels: Tensor, rounds: int) -> None:
        self.model, self.pixels, self.rounds = model, pixels, rounds

    @torch.no_grad()
    def __call__(self, plan: Plan, matchings: list[str]) -> Iterator[Cell]:
        """Yield the cell of each matching."""
        plain = copy.deepcopy(self.model)
        tome.remove_patch(plain)
        models = {"unpatched": plain}
        for matching in matchings:
            merging = tome.apply_patch(copy.deepcopy(plain), r=plan.merged, matching=matching)
            models[matching] = merging
        calls = {name: (lambda one=one: one(self.pixels)) for name, one in models.items()}
        rounds = list(interleave(calls, self.rounds))
        for name in matchings:
            low, high = quartiles(rounds, "unpatched", name)
            seconds = statistics.median(one[name] for one in rounds)
            yield plan.cell(self.kind, name) | {
                "measured": round(median_ratio(rounds, "unpatched", name), 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "seconds": round(seconds, 4),
                "batch": len(self.pixels),
                "rounds": self.rounds,
            }
