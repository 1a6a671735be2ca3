"""Compare two patched models layer by layer: decisions first, numbers where the decisions agree.

Merging is a decision, and two correct programs may decide differently where two similarities differ
by rounding. After that, each model processes the image differently, so its numbers cannot be compared.
A report therefore follows each image to its first differing decision and shows how close the decision
was: the gap between the similarities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of
from tomecore.parity._flip import Flip, flip
from tomecore.parity._report import BlockReport, Difference, LayerReport, Report
from tomecore.parity._trace import Merge, Trace, comparable_handle, trace

__all__ = ["DifferentMergesError", "compare"]


class DifferentMergesError(ArgumentValueError):
    """The models merge in different layers or different amounts; ``tokens`` has those of each by layer."""

    def __init__(self, tokens: tuple[dict[int, int], dict[int, int]]) -> None:
        super().__init__(
            f"the models merge differently: tokens by layer {tokens[0]} against {tokens[1]}; "
            "give both the same r, depth and protected tokens"
        )
        self.tokens = tokens


def compare(model_a: Any, model_b: Any, images: np.ndarray, *, batch: int = 64) -> Report:
    """Run two patched models on the same images and report where they agree.

    Args:
        model_a: a patched model of any framework.
        model_b: another one, with as many layers and the same schedule. Both run in evaluation mode.
        images: (n, C, H, W) NumPy; each model receives them in the dtype of its weights.
        batch: images per forward pass; every activation of a batch is kept while it is compared.

    Raises:
        NotPatchedError: a model is not patched.
        ArgumentValueError: there are no images; the models have different numbers of tokens or layers, or
            merge in different layers or different amounts.
        UnsupportedModelError: a model does not build one sequence of tokens from each image.
    """
    protected = (
        comparable_handle(model_a, "model_a").protected,
        comparable_handle(model_b, "model_b").protected,
    )
    if not len(images):
        raise ArgumentValueError(f"`images` must not be empty; got shape {images.shape}")
    tally = _Tally(protected)
    for at in range(0, len(images), batch):
        part = images[at : at + batch]
        tally.add(trace(model_a, part, "model_a"), trace(model_b, part, "model_b"), at)
    return tally.report((_name(model_a), _name(model_b)))


@dataclass
class _Layer:
    """The sums of one layer over all batches."""

    merged: int = 0
    images: int = 0
    still: int = 0
    decisions: list[int] = field(default_factory=lambda: [0, 0])  # number of equal ones, of all
    sizes: list[int] = field(default_factory=lambda: [0, 0])
    keys: Difference = field(default_factory=Difference)
    tokens: Difference = field(default_factory=Difference)
    output: Difference = field(default_factory=Difference)
    flips: list[Flip] = field(default_factory=list)

    def report(self, number: int) -> LayerReport:
        return LayerReport(
            layer=number,
            merged=self.merged,
            images=self.images,
            identical_decisions=self.decisions[0] / self.decisions[1] if self.decisions[1] else 1.0,
            identical_sizes=self.sizes[0] / self.sizes[1] if self.sizes[1] else 1.0,
            largest_difference=self.tokens.largest,
            gaps=tuple(one.gap for one in self.flips),
            keys=self.keys,
            tokens=self.tokens,
            flips=tuple(self.flips),
        )


class _Tally:
    """Compares batch by batch, so that only the activations of one batch are in memory."""

    def __init__(self, protected: tuple[int, int]) -> None:
        self.protected = protected
        self.embedding = Difference()
        self.layers: dict[int, _Layer] = {}
        self.merging: list[int] = []
        self.agree: list[np.ndarray] = []
        self.outputs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, a: Trace, b: Trace, first: int) -> None:
        """Add a batch whose first image has the number ``first``."""
        _check_comparable(a, b)
        self.merging = list(a.merges)
        self.embedding |= Difference.of(a.embedding, b.embedding)
        agree = np.ones(len(a.output), dtype=bool)
        for number, outputs in enumerate(zip(a.blocks, b.blocks, strict=True)):
            layer = self.layers.setdefault(number, _Layer())
            if number in a.merges:
                agree = self._merge(
                    layer, number, (a.merges[number], b.merges[number]), agree, first
                )
            layer.still += int(agree.sum())
            layer.output |= Difference.of(outputs[0][agree], outputs[1][agree])
        self.agree.append(agree)
        self.outputs.append((a.output, b.output))

    def _merge(
        self,
        layer: _Layer,
        number: int,
        merges: tuple[Merge, Merge],
        agree: np.ndarray,
        first: int,
    ) -> np.ndarray:
        a, b = merges
        same = a.slots == b.slots
        still: np.ndarray = agree & same.all(1)
        layer.merged = a.merged.shape[1]
        layer.images += int(agree.sum())
        _count(layer.decisions, same[agree])
        _count(layer.sizes, a.sizes[still] == b.sizes[still])
        layer.keys |= Difference.of(a.keys[agree], b.keys[agree])
        layer.tokens |= Difference.of(a.x[still], b.x[still])
        layer.flips += [
            flip(first + int(row), number, merges, int(row), self.protected)
            for row in np.flatnonzero(agree & ~still)
        ]
        return still

    def report(self, names: tuple[str, str]) -> Report:
        agree = np.concatenate(self.agree)
        output_a, output_b = (np.concatenate([pair[i] for pair in self.outputs]) for i in (0, 1))
        return Report(
            names=names,
            images=len(agree),
            layers=tuple(self.layers[number].report(number) for number in self.merging),
            identical_decisions=float(agree.mean()),
            identical_predictions=float((output_a.argmax(-1) == output_b.argmax(-1)).mean()),
            largest_difference=Difference.of(output_a, output_b).largest,
            largest_difference_agreeing=Difference.of(output_a[agree], output_b[agree]).largest,
            outputs=(output_a, output_b),
            embedding=self.embedding,
            blocks=tuple(
                BlockReport(number, layer.still, layer.output)
                for number, layer in self.layers.items()
            ),
        )


def _count(counts: list[int], same: np.ndarray) -> None:
    counts[0] += int(same.sum())
    counts[1] += same.size


def _check_comparable(a: Trace, b: Trace) -> None:
    for what, shapes in (
        ("(B, N, C) that enters the first layer", (a.embedding.shape, b.embedding.shape)),
        ("number of layers", (len(a.blocks), len(b.blocks))),
        ("output", (a.output.shape, b.output.shape)),
    ):
        if shapes[0] != shapes[1]:
            raise ArgumentValueError(
                f"the models are not of one architecture: {what} is {shapes[0]} in `model_a` and "
                f"{shapes[1]} in `model_b`"
            )
    amounts = [{k: m.x.shape[1] for k, m in t.merges.items()} for t in (a, b)]
    if amounts[0] != amounts[1]:
        raise DifferentMergesError((amounts[0], amounts[1]))


def _name(model: Any) -> str:
    return f"{framework_of(model)} {type(model).__name__}"
