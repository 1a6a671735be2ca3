"""Run one batch at every r in turn, and check the outputs of the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.evaluation._reading import Batch
from tomecore.evaluation._result import Chunk, count_chunk
from tomecore.frameworks import evaluating, logits_of, to_numpy, to_tensor
from tomecore.schedule import R

__all__ = ["Runner", "outputs_of"]


class Runner:
    """Runs one batch at every r.

    Args:
        model: a patched model.
        schedules: the values of r, 0 first.
        labels: (n,) labels of all images; None: no labels.
    """

    def __init__(self, model: Any, schedules: Sequence[R], labels: np.ndarray | None) -> None:
        self.model, self.schedules, self.labels = model, schedules, labels
        self.warm: set[int] = set()

    def run(self, number: int, batch: Batch) -> Chunk:
        """Return the counts and times of batch ``number`` at every r; the number decides which r is first."""
        readable = [(i, image) for i, image in batch if not isinstance(image, str)]
        unreadable = [(i, reason) for i, reason in batch if isinstance(reason, str)]
        if not readable:
            return {"images": 0, "unreadable": unreadable}
        shapes = {image.shape for _, image in readable}
        if len(shapes) > 1:
            raise ArgumentValueError(
                f"`images` of one batch must have one shape; got {sorted(shapes)}. Resize them alike, "
                "or use batch=1."
            )
        x = to_tensor(self.model, np.stack([image for _, image in readable]))
        count = len(readable)
        first = number % len(self.schedules)
        order = [*range(first, len(self.schedules)), *range(first)]
        outputs: dict[int, np.ndarray] = {}
        seconds, left, entering = {}, {}, 0
        for index in order:
            self.model.r = self.schedules[index]
            if index not in self.warm:
                classes_of(to_numpy(logits_of(self.model(x))), count)
                self.warm.add(index)
            start = time.perf_counter()
            output = to_numpy(logits_of(self.model(x)))
            seconds[index] = time.perf_counter() - start
            classes_of(output, count)
            outputs[index] = output
            left[index] = self.model.tome.tokens[-1]
            if index == 0:
                entering = left[0]
        ordered = range(len(self.schedules))
        labels = None if self.labels is None else self.labels[[i for i, _ in readable]]
        if labels is not None and labels.max() >= outputs[0].shape[1]:
            raise ArgumentValueError(
                f"`labels` holds {labels.max()}, but the model has outputs for the "
                f"{outputs[0].shape[1]} classes from 0 to {outputs[0].shape[1] - 1}"
            )
        return {
            "images": count,
            "unreadable": unreadable,
            "tokens": entering,
            "left": [left[index] for index in ordered],
            "seconds": [seconds[index] for index in ordered],
            **count_chunk([outputs[index] for index in ordered], labels),
        }


def outputs_of(model: Any, shape: tuple[int, int, int]) -> int:
    """Return how many classes a model has outputs for: run it on one black image of ``shape``.

    Raises:
        ArgumentTypeError, ArgumentValueError: the outputs are not (B, classes).
    """
    with evaluating(model):
        image = to_tensor(model, np.zeros((1, *shape), dtype=np.float32))
        return classes_of(to_numpy(logits_of(model(image))), 1)


def classes_of(output: np.ndarray, count: int) -> int:
    """Return the number of classes in ``output`` for ``count`` images; raise if it has another shape."""
    if output.ndim != 2 or output.shape[0] != count or output.shape[1] < 2:
        raise ArgumentValueError(
            f"`model` must give outputs (B, classes), with at least two classes; for {count} images it "
            f"gave {tuple(output.shape)}. Use a model with a head for classes."
        )
    return int(output.shape[1])
