"""The result of comparing two models, as data and as a short table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tomecore.parity._flip import Flip

__all__ = ["BlockReport", "Difference", "LayerReport", "Report"]

#: layers that a table shows at most
_ROWS = 12


@dataclass(frozen=True)
class Difference:
    """How two arrays differ.

    Args:
        largest: largest difference of two elements; NaN if either array has one, infinite if the shapes
            differ.
        scale: largest absolute value in the first array.
    """

    largest: float = 0.0
    scale: float = 0.0

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Difference:
        a, b = a.astype(np.float64), b.astype(np.float64)
        if a.shape != b.shape:
            return cls(float("inf"), float(np.abs(a).max(initial=0)))
        with np.errstate(invalid="ignore"):
            return cls(float(np.abs(a - b).max(initial=0)), float(np.abs(a).max(initial=0)))

    def __or__(self, other: Difference) -> Difference:
        """Return the larger of both; with ``np.maximum``, because Python's ``max`` loses NaN."""
        return Difference(
            float(np.maximum(self.largest, other.largest)),
            float(np.maximum(self.scale, other.scale)),
        )


@dataclass(frozen=True)
class LayerReport:
    """The comparison of one layer that merged.

    Args:
        layer: number of the layer, from 0.
        merged: tokens merged here.
        images: images whose decisions agreed up to here.
        identical_decisions: share of their tokens that went to the same slot, 0 to 1.
        identical_sizes: share of slots with equal sizes, over images that still agree.
        largest_difference: of the merged tokens, over images that still agree.
        gaps: for each image that first disagrees here, the gap between the similarities that were
            decided differently; a gap as small as rounding is a near-tie.
        keys: difference of the keys that tokens were matched by, over ``images``.
        tokens: difference of the merged tokens, as ``largest_difference``.
        flips: one for each of ``gaps``.
    """

    layer: int
    merged: int
    images: int
    identical_decisions: float
    identical_sizes: float
    largest_difference: float
    gaps: tuple[float, ...]
    keys: Difference = Difference()
    tokens: Difference = Difference()
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class BlockReport:
    """The comparison of the outputs of one block.

    Args:
        layer: number of the layer, from 0.
        images: images whose decisions agreed up to here, this layer's included.
        output: difference of all N tokens, each with the value of the slot that holds it.
    """

    layer: int
    images: int
    output: Difference


@dataclass(frozen=True)
class Report:
    """The comparison of two models on the same images.

    Args:
        names: names of the two models.
        images: number of images.
        layers: one report per layer that merged.
        identical_decisions: share of images whose decisions agreed in every layer.
        identical_predictions: share of images with the same largest output.
        largest_difference: of the outputs, over all images.
        largest_difference_agreeing: of the outputs, over images whose decisions agreed.
        outputs: outputs of the two models, NumPy; not part of :meth:`as_dict`.
        embedding: difference of the input of the first block.
        blocks: one report per block, whether it merged or not.
    """

    names: tuple[str, str]
    images: int
    layers: tuple[LayerReport, ...]
    identical_decisions: float
    identical_predictions: float
    largest_difference: float
    largest_difference_agreeing: float
    outputs: tuple[np.ndarray, np.ndarray] = field(repr=False)
    embedding: Difference = Difference()
    blocks: tuple[BlockReport, ...] = ()

    @property
    def largest_gap(self) -> float:
        """The largest gap of a decision that differs; 0 if none does."""
        return max((gap for layer in self.layers for gap in layer.gaps), default=0.0)

    @property
    def flips(self) -> tuple[Flip, ...]:
        """The first decision that differs, for every image that has one."""
        return tuple(flip for layer in self.layers for flip in layer.flips)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        plain = {name: value for name, value in asdict(self).items() if name != "outputs"}
        return {**plain, "largest_gap": self.largest_gap}

    def table(self, around: int | None = None, rows: int = _ROWS) -> list[str]:
        """Return lines of text: the embedding, and the largest differences by layer.

        Args:
            around: the layer to mark and to show with its neighbours; None: the first and last layers.
            rows: number of layers to show at most.
        """
        merging = {layer.layer: layer for layer in self.layers}
        lines = [
            "   layer  merged  images     keys  same decisions  merged tokens  block output",
            f"   embedding{self.embedding.largest:66.1e}",
        ]
        before = -1
        for block in _window(self.blocks, around, rows):
            if block.layer != before + 1:
                lines.append("     ...")
            before = block.layer
            at = merging.get(block.layer)
            mark = " > " if block.layer == around else "   "
            cells = f"{0:6d}  {block.images:6d}  {'-':>7}  {'-':>14}  {'-':>13}"
            if at is not None:
                cells = (
                    f"{at.merged:6d}  {block.images:6d}  {_cell(at.keys, at.images, 7)}  "
                    f"{format(at.identical_decisions, '.2%') if at.images else '-':>14}  "
                    f"{_cell(at.tokens, block.images, 13)}"
                )
            lines.append(
                f"{mark}{block.layer:5d}  {cells}  {_cell(block.output, block.images, 12)}"
            )
        if before + 1 < len(self.blocks):
            lines.append("     ...")
        return lines

    def __str__(self) -> str:
        lines = [
            f"{self.names[0]} against {self.names[1]}, {self.images} images",
            "layer  merged  images  same decisions  same sizes  largest difference  first disagreements",
        ]
        for at in self.layers:
            gaps = ", ".join(f"gap {gap:.1e}" for gap in at.gaps[:3])
            more = f" and {len(at.gaps) - 3} more" if len(at.gaps) > 3 else ""
            lines.append(
                f"{at.layer:5d}  {at.merged:6d}  {at.images:6d}  {at.identical_decisions:14.2%}  "
                f"{at.identical_sizes:10.2%}  {at.largest_difference:18.1e}  {gaps or '-'}{more}"
            )
        lines.append(
            f"outputs: largest difference {self.largest_difference:.1e} "
            f"({self.largest_difference_agreeing:.1e} where all decisions agree); "
            f"identical decisions {self.identical_decisions:.2%}, "
            f"identical predictions {self.identical_predictions:.2%}"
        )
        return "\n".join(lines)


def _cell(difference: Difference, images: int, width: int) -> str:
    """Return a difference, or a dash if no image is left to compare."""
    return f"{difference.largest:{width}.1e}" if images else f"{'-':>{width}}"


def _window(
    blocks: tuple[BlockReport, ...], around: int | None, rows: int
) -> tuple[BlockReport, ...]:
    """Return the blocks to show: all if they are few; else those around one, or the first and the last."""
    if len(blocks) <= rows:
        return blocks
    if around is None:
        return (*blocks[: rows // 3], *blocks[-(rows // 3) :])
    start = max(0, min(around - rows // 2, len(blocks) - rows))
    return blocks[start : start + rows]
