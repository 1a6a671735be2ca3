"""Counts per batch and their total. All sums are integers, so the order of batches does not matter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tomecore.schedule import R, as_data

__all__ = ["TIMED_FROM", "TOP5_FROM", "Chunk", "Result", "Row", "count_chunk", "result_of"]

#: number of classes from which top-5 means something
TOP5_FROM = 6

#: number of timed batches from which a speed means something
TIMED_FROM = 3

#: a batch as plain data, for JSON: images, classes, tokens, unreadable, and one number for each r in
#: seconds, left, right, right5, same, undefined
Chunk = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """The numbers at one r.

    Args:
        r: the schedule, as it was passed; 0 is the unpatched model.
        tokens: tokens left after the last layer.
        top1: share of the images whose label has the largest output; None without labels.
        top5: share whose label is among the five largest; None without labels or below six classes.
        agreement: share whose largest output is that of the unpatched model.
        images_per_second: speed of the forward passes, all processes together; None with fewer than
            three batches (``Result.timed``), which are too few to time.
        speedup: unpatched time over time at this r, the median of the batches; None as above.
        limit: speedup that the arithmetic allows; None if the multiply-adds cannot be counted.
        right, right5, same: the numbers of images from which the shares are computed.
        undefined: images with a NaN among the outputs; they count as wrong and as not agreeing.
    """

    r: R
    tokens: int
    top1: float | None
    top5: float | None
    agreement: float
    images_per_second: float | None
    speedup: float | None
    limit: float | None
    right: int | None
    right5: int | None
    same: int
    undefined: int


@dataclass(frozen=True)
class Result:
    """All rows, the unpatched model first.

    Args:
        rows: one for each r.
        images: number of images that were read.
        classes: number of classes the model has outputs for.
        unreadable: (index, reason) of the images that could not be read.
        batch: images in each timed forward pass; fewer than requested if there are fewer images.
        timed: number of batches of this size, which were timed.
        processes: number of processes that shared the images.
    """

    rows: tuple[Row, ...]
    images: int
    classes: int
    unreadable: tuple[tuple[int, str], ...]
    batch: int
    timed: int
    processes: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON; a schedule object becomes text."""
        rows = [{**asdict(row), "r": as_data(row.r)} for row in self.rows]
        return {**vars(self), "rows": rows, "unreadable": [list(one) for one in self.unreadable]}


def count_chunk(outputs: Sequence[np.ndarray], labels: np.ndarray | None) -> Chunk:
    """Count the predictions of one batch.

    Args:
        outputs: (n, classes) for each r, that of the unpatched model first.
        labels: (n,) int, or None.
    """
    found: Chunk = {"classes": int(outputs[0].shape[1]), "same": [], "undefined": []}
    if labels is not None:
        found |= {"right": [], "right5": []}
    reference, defined = outputs[0].argmax(-1), ~np.isnan(outputs[0]).any(-1)
    for output in outputs:
        usable = ~np.isnan(output).any(-1)
        same = usable & defined & (output.argmax(-1) == reference)
        found["same"].append(int(same.sum()))
        found["undefined"].append(int((~usable).sum()))
        if labels is not None:
            place = _place(output, labels)
            found["right"].append(int((usable & (place == 0)).sum()))
            found["right5"].append(int((usable & (place < 5)).sum()))
    return found


def _place(output: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (n,) int: how many outputs come before the label's; in a tie, the first comes first."""
    own = np.take_along_axis(output, labels[:, None], axis=1)
    earlier = np.arange(output.shape[1]) < labels[:, None]
    place: np.ndarray = ((output > own) | ((output == own) & earlier)).sum(-1)
    return place


def result_of(
    shares: Sequence[Sequence[Chunk]],
    schedules: Sequence[R],
    limits: Sequence[float | None],
) -> Result:
    """Combine the counts of all processes; at least one image was read.

    Args:
        shares: the chunks of each process.
        schedules: the r of each row.
        limits: the arithmetic limit of each row.
    """
    chunks = [chunk for share in shares for chunk in share]
    counted = [chunk for chunk in chunks if chunk["images"]]
    images = sum(chunk["images"] for chunk in counted)
    timed = [_full_chunks(share) for share in shares]
    batches = [chunk["images"] for share in timed for chunk in share]
    enough = len(batches) >= TIMED_FROM
    rows = []
    for index, r in enumerate(schedules):
        sums = {
            name: sum(chunk[name][index] for chunk in counted)
            for name in ("right", "right5", "same", "undefined")
            if name in counted[0]
        }
        with_top5 = "right5" in sums and counted[0]["classes"] >= TOP5_FROM
        ratios = [c["seconds"][0] / c["seconds"][index] for share in timed for c in share]
        rows.append(
            Row(
                r,
                tokens=counted[0]["left"][index],
                top1=sums["right"] / images if "right" in sums else None,
                top5=sums["right5"] / images if with_top5 else None,
                agreement=sums["same"] / images,
                images_per_second=_speed(timed, index) if enough else None,
                speedup=statistics.median(ratios) if enough else None,
                limit=limits[index],
                right=sums.get("right"),
                right5=sums["right5"] if with_top5 else None,
                same=sums["same"],
                undefined=sums["undefined"],
            )
        )
    unreadable = sorted((index, reason) for c in chunks for index, reason in c["unreadable"])
    return Result(
        rows=tuple(rows),
        images=images,
        classes=counted[0]["classes"],
        unreadable=tuple(unreadable),
        batch=max(batches),
        timed=len(batches),
        processes=len(shares),
    )


def _full_chunks(share: Sequence[Chunk]) -> list[Chunk]:
    """Return the chunks with the most images: the speed of smaller ones would not be comparable."""
    most = max((chunk["images"] for chunk in share), default=0)
    return [chunk for chunk in share if most and chunk["images"] == most]


def _speed(timed: Sequence[Sequence[Chunk]], index: int) -> float:
    speeds: list[float] = [
        share[0]["images"] / statistics.median(chunk["seconds"][index] for chunk in share)
        for share in timed
        if share
    ]
    return sum(speeds)
