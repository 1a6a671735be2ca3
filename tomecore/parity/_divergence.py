"""Find where two models diverge: the first place, in the order of computation, with more than rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tomecore.parity._flip import Flip
from tomecore.parity._report import Difference, Report
from tomecore.parity._tolerance import Tolerance

__all__ = ["Divergence", "clear_flips", "first_divergence"]


@dataclass(frozen=True)
class Divergence:
    """The place where two models diverge.

    Args:
        half: "embedding", "keys", "decisions", "sizes", "merged tokens", "output", "head", "schedule"
            or "undecided".
        layer: number of the layer; None if the half belongs to no layer.
        detail: the size of the difference, in words.
        look: what to inspect next.
    """

    half: str
    layer: int | None
    detail: str
    look: str

    @property
    def where(self) -> str:
        """The place in words."""
        names = {
            "embedding": "the embedding (what enters layer 0)",
            "decisions": f"the merge decisions of layer {self.layer}",
            "head": "the head (what follows the last layer)",
            "schedule": f"the schedule: layer {self.layer} merges different amounts",
            "undecided": "near-ties, one or more in every image",
        }
        return names.get(self.half, f"the {self.half} of layer {self.layer}")

    def __str__(self) -> str:
        if self.half == "undecided":
            return f"They are undecided: {self.detail}"
        return f"They diverge at {self.where}: {self.detail}"

    @classmethod
    def of_schedules(cls, a: dict[int, int], b: dict[int, int]) -> Divergence:
        """Return the divergence of models that keep different numbers of tokens, given by layer."""
        layer = min(k for k in {*a, *b} if a.get(k) != b.get(k))
        kept = [m.get(layer, "all its") for m in (a, b)]
        detail = f"a keeps {kept[0]} tokens there and b {kept[1]}"
        return cls("schedule", layer, detail, "r and the number of protected tokens of both models")


def first_divergence(report: Report, tolerance: Tolerance, layers: str) -> Divergence | None:
    """Return the first place where the models differ by more than rounding; None if there is none.

    Args:
        report: the report on both models.
        tolerance: the differences that count as rounding.
        layers: the path of the list of layers in model a, for messages.
    """
    return next(_divergences(report, tolerance, layers), None)


def _divergences(report: Report, tolerance: Tolerance, layers: str) -> Iterator[Divergence]:
    """Yield all divergences, in the order of computation; those after the first mean little."""

    def of(half: str, layer: int | None, found: Difference, look: str) -> Iterator[Divergence]:
        if not tolerance.holds(found):
            detail = f"largest difference {found.largest:.1e}, of {found.scale:.1e} in a"
            if found.largest == np.inf:
                detail = "they have another shape in b"
            yield Divergence(half, layer, detail, look)

    look = "the patch embedding, the position embedding and the prefix tokens"
    yield from of("embedding", None, report.embedding, look)
    merging = {layer.layer: layer for layer in report.layers}
    for block in report.blocks:
        number, name = block.layer, f"{layers}.{block.layer}"
        look = f"all of {name}: what enters it agrees"
        if number in merging:
            at = merging[number]
            look = f"the norm before the attention of {name} and its key projection"
            yield from of("keys", number, at.keys, look)
            clear = clear_flips(report, number, tolerance)
            if clear:
                more = f"; {len(clear)} images in all" if len(clear) > 1 else ""
                detail = f"{max(clear, key=lambda flip: flip.gap)}{more}"
                look = f"the matching of layer {number}: its keys agree"
                yield Divergence("decisions", number, detail, look)
            if at.identical_sizes != 1:
                detail = f"{1 - at.identical_sizes:.2%} of them differ though the merges agree"
                look = "tomecore's merging: sizes are counted exactly"
                yield Divergence("sizes", number, detail, look)
            look = f"the rest of the attention of {name}: queries, values, scale, bias, projection"
            yield from of("merged tokens", number, at.tokens, look)
            look = f"the second half of {name}, its norm and feed-forward"
        yield from of("output", number, block.output, look)
    scale = float(np.abs(report.outputs[0]).max(initial=0))
    output = Difference(report.largest_difference_agreeing, scale)
    yield from of("head", None, output, "the last norm, the pooling and the head")
    if report.identical_decisions == 0:
        detail = "no image is left whose numbers could be compared to the end"
        look = "the same in float64, where near-ties are decided"
        yield Divergence("undecided", None, detail, look)


def clear_flips(report: Report, layer: int | None, tolerance: Tolerance) -> list[Flip]:
    """Return the decisions of a layer that differ by more than rounding."""
    return [
        flip
        for flip in report.flips
        if flip.layer == layer and (flip.tied or not flip.gap <= tolerance.gap)
    ]
