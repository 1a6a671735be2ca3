"""The first place, in the order of computation, where two models part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tomecore.parity._flip import Flip
from tomecore.parity._report import Difference, Report
from tomecore.parity._tolerance import Tolerance
from tomecore.parity._trace import comparable_handle

__all__ = ["Place", "clear_flips", "located"]


@dataclass(frozen=True)
class Place:
    """Where two models part.

    Args:
        half: "embedding", "keys", "decisions", "sizes", "merged tokens", "output", "head", "schedule"
            or "undecided".
        layer: of the halves that are one layer's; else None.
        detail: how much differs.
        look: what to look at next.
    """

    half: str
    layer: int | None
    detail: str
    look: str

    @property
    def where(self) -> str:
        named = {
            "embedding": "the embedding (what enters layer 0)",
            "decisions": f"the merge decisions of layer {self.layer}",
            "head": "the head (what follows the last layer)",
            "schedule": f"the schedule: layer {self.layer} merges different amounts",
            "undecided": "near-ties, one or more in every image",
        }
        return named.get(self.half, f"the {self.half} of layer {self.layer}")

    def __str__(self) -> str:
        if self.half == "undecided":
            return f"They are undecided: {self.detail}"
        return f"They diverge at {self.where}: {self.detail}"

    @classmethod
    def of_schedule(cls, a: dict[int, int], b: dict[int, int]) -> Place:
        layer = min(k for k in {*a, *b} if a.get(k) != b.get(k))
        counts = [m.get(layer, "all its") for m in (a, b)]
        detail = f"a keeps {counts[0]} tokens there and b {counts[1]}"
        return cls("schedule", layer, detail, "r and the number of protected tokens of both models")


def located(report: Report, tolerance: Tolerance, model_a: Any) -> Place | None:
    """The first place, in the order of computation, where the models differ by more than rounding."""
    tome = comparable_handle(model_a, "model_a")

    def differs(half: str, layer: int | None, found: Difference, look: str) -> Place | None:
        if tolerance.holds(found):
            return None
        detail = f"largest difference {found.largest:.1e}, of {found.scale:.1e} in a"
        if found.largest == np.inf:
            detail = "they have another shape in b"
        return Place(half, layer, detail, look)

    look = "the patch embedding, the position embedding and the tokens at the front"
    place = differs("embedding", None, report.embedding, look)
    merging = {layer.layer: layer for layer in report.layers}
    for block in report.blocks:
        if place:
            return place
        number, name = block.layer, f"{tome.layers}.{block.layer}"
        at = merging.get(number)
        look = f"all of {name}: what enters it agrees"
        if at is not None:
            look = f"the norm before the attention of {name} and its key projection"
            place = differs("keys", number, at.keys, look)
            place = place or _decisions(report, number, tolerance)
            if place is None and at.identical_sizes != 1:
                detail = f"{1 - at.identical_sizes:.2%} of them differ though the merges agree"
                place = Place(
                    "sizes", number, detail, "tomecore's merging: sizes are counted exactly"
                )
            look = f"the rest of the attention of {name}: queries, values, scale, bias, projection"
            place = place or differs("merged tokens", number, at.tokens, look)
            look = f"the second half of {name}, its norm and feed-forward"
        place = place or differs("output", number, block.output, look)
    if place:
        return place
    scale = float(np.abs(report.outputs[0]).max(initial=0))
    output = Difference(report.largest_difference_agreeing, scale)
    place = differs("head", None, output, "the last norm, the pooling and the head")
    if place is None and report.identical_decisions == 0:
        detail = "no image is left whose numbers could be compared to the end"
        place = Place("undecided", None, detail, "the same in float64, where near-ties are decided")
    return place


def _decisions(report: Report, layer: int, tolerance: Tolerance) -> Place | None:
    clear = clear_flips(report, layer, tolerance)
    if not clear:
        return None
    worst = max(clear, key=lambda flip: flip.gap)
    more = f"; {len(clear)} images in all" if len(clear) > 1 else ""
    look = f"the matching of layer {layer}: its keys agree"
    return Place("decisions", layer, f"{worst}{more}", look)


def clear_flips(report: Report, layer: int | None, tolerance: Tolerance) -> list[Flip]:
    """Decisions of a layer that differ without the excuse of rounding."""
    return [
        flip
        for flip in report.flips
        if flip.layer == layer and (flip.tied or not flip.gap <= tolerance.gap)
    ]
