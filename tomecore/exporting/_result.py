"""The report of an export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tomecore.schedule import R, as_data

__all__ = ["Exported", "Speed"]


@dataclass(frozen=True)
class Speed:
    """Images per second of two files, timed in turn.

    Args:
        threads: threads of the runtime.
        batch: images in each run.
        unmerged: of the file without merging.
        merged: of the file that was exported.
        speedup: merged over unmerged, the median of the rounds.
    """

    threads: int
    batch: int
    unmerged: float
    merged: float
    speedup: float


@dataclass(frozen=True)
class Exported:
    """A file that was exported and checked.

    Args:
        path: the file.
        others: further files that it needs next to it: weights that do not fit into it.
        size: bytes of all of them.
        r: tokens merged per layer, as it was set.
        limit: the speed-up that the arithmetic allows.
        tokens: tokens that enter the first block.
        tokens_left: tokens left after the last block.
        batches: batch sizes at which the file was run and compared with the model.
        difference: largest difference to the model in its framework, relative to the largest output, over the
            images that merge alike.
        near_ties: how many of the images in the check differ by more. Their tokens merge differently, because
            some similarities differ by rounding only.
        checked: how many images were in the check.
        cosine: cosine between the outputs of the file and those of the model without merging, for each image;
            empty if the model returns merged tokens (``restore=False``).
        constant: whether all images have the same output, as with a head of zeros: the check says little.
        given: whether the images were given; otherwise they are random, and ``cosine`` says little.
        speeds: speed next to a file without merging; empty with r = 0.
    """

    path: Path
    others: tuple[Path, ...]
    size: int
    r: R
    limit: float
    tokens: int
    tokens_left: int
    batches: tuple[int, ...]
    difference: float
    near_ties: int
    checked: int
    cosine: tuple[float, ...]
    constant: bool
    given: bool
    speeds: tuple[Speed, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        paths = {"path": str(self.path), "others": [str(other) for other in self.others]}
        return {**asdict(self), **paths, "r": as_data(self.r)}
