"""Run a model over images at several r, batch by batch: the run, its record, and its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.core.checks import whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError, UnsupportedModelError
from tomecore.evaluation._batch import Runner
from tomecore.evaluation._device import autocast
from tomecore.evaluation._reading import read_ahead
from tomecore.evaluation._result import Result, result_of
from tomecore.evaluation._resume import Record, digest_of_array, digest_of_model
from tomecore.evaluation.distributed import ALONE, Processes
from tomecore.frameworks import evaluating
from tomecore.loading import merging
from tomecore.schedule import R, as_data

__all__ = ["evaluate"]

Progress = Callable[[int, int], None]


def evaluate(
    model: Any,
    images: Sequence[np.ndarray] | np.ndarray,
    labels: Sequence[int] | np.ndarray | None,
    schedules: Sequence[R],
    *,
    batch: int = 32,
    amp: str | None = None,
    workers: int | None = None,
    resume: Path | str | None = None,
    name: str = "",
    processes: Processes = ALONE,
    progress: Progress = lambda done, total: None,
) -> Result:
    """Measure accuracy, agreement with the unpatched model, and speed, at each r.

    All r of a batch run in turn, and each batch begins with a different one, so that drift of the machine
    affects all of them. Times are those of forward passes until the outputs are on the host; the next images
    are read meanwhile. The model always runs at r = 0 too: this is the unpatched model, bit for bit.

    Args:
        model: a torch or Paddle model; if it is not patched, it is patched during this call. Its outputs
            must be (B, classes), see :func:`tomecore.frameworks.logits_of`.
        images: (n, C, H, W), or anything with a length whose items are (C, H, W) float32, read in
            threads. An item that raises ArgumentValueError is counted as unreadable.
        labels: (n,) ints from 0 to below the number of classes; None: agreement only.
        schedules: values of r, in any form.
        batch: images per forward pass.
        amp: None, "bf16" or "fp16": autocast, of torch models.
        workers: threads that read images; None: one for each core, at most eight.
        resume: a file to store results in, and to continue from. Each of several processes has its own
            file, named after this one.
        name: name of the run, for ``resume``: another name is another run.
        processes: this process and the others, from :func:`tomecore.evaluation.distributed.join`; each runs
            its share, and all return the same result.
        progress: called with the number of images done and the total, both of this process.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument is not allowed, the outputs are not
            (B, classes), a label is not a class of the model, or the resume file belongs to another run.
        UnsupportedModelError: the model cannot be patched.
        TomeError: no image could be read, or the processes do not hold the same weights or images.
    """
    batch = whole_number(batch, "batch", at_least=1)
    count, known = len(images), _labels(labels, len(images))
    wanted = [0, *(r for r in schedules if not (type(r) is int and r == 0))]
    run = {
        "name": name,
        "r": [as_data(r) for r in wanted],
        "images": count,
        "batch": batch,
        "amp": amp,
        "processes": processes.world,
    }
    if resume is not None or processes.world > 1:
        run["weights"] = digest_of_model(model)
        run["data"] = _digest_of(images)
        run["labels"] = None if known is None else digest_of_array(known)
        _same_everywhere(run, processes)
    record = Record(None if resume is None else Path(resume), run, processes)
    own = processes.share(count)
    chunks = [own[at : at + batch] for at in range(0, len(own), batch)]
    with merging(model) as patched, evaluating(patched), autocast(patched, amp):
        for r in wanted:
            patched.r = r  # raises, before any work, if r does not fit this model
        done = sum(len(chunks[number]) for number in record.chunks)
        progress(done, len(own))
        left = [number for number in range(len(chunks)) if number not in record.chunks]
        runner = Runner(patched, wanted, known)
        for number, loaded in read_ahead(images, chunks, left, workers):
            record.add(number, runner.run(number, loaded))
            done += len(chunks[number])
            progress(done, len(own))
        shares = processes.gather([record.chunks[number] for number in sorted(record.chunks)])
        found = [chunk for share in shares for chunk in share if chunk["images"]]
        if not found:
            reasons = [
                reason for share in shares for chunk in share for _, reason in chunk["unreadable"]
            ]
            raise TomeError(f"none of {count} images could be read; the first: {reasons[0]}")
        limits = [_limit(patched, found[0]["tokens"], r) for r in wanted]
    return result_of(shares, wanted, limits)


def _labels(labels: Any, count: int) -> np.ndarray | None:
    if count == 0:
        raise ArgumentValueError("`images` is empty; give at least one")
    if labels is None:
        return None
    found = np.asarray(labels)
    if not np.issubdtype(found.dtype, np.integer):
        raise ArgumentTypeError(f"`labels` must be integers; got {found.dtype}")
    if found.shape != (count,):
        raise ArgumentValueError(
            f"`labels` must have one number for each of the {count} images; got {found.shape}"
        )
    if found.min() < 0:
        raise ArgumentValueError(f"`labels` must be classes from 0; got {found.min()}")
    return found.astype(np.int64)


def _digest_of(images: Any) -> str:
    if isinstance(images, np.ndarray):
        return digest_of_array(images)
    if hasattr(images, "digest"):
        return str(images.digest())
    raise ArgumentTypeError(
        "`images` must be an array or have a method digest(), which says whether they are the same, "
        f"for `resume` and for several processes; got {type(images).__name__}"
    )


def _same_everywhere(run: dict[str, Any], processes: Processes) -> None:
    for rank, other in enumerate(processes.gather(run)):
        differing = [name for name, value in other.items() if run[name] != value]
        if differing:
            raise TomeError(
                f"process {rank} differs from process {processes.rank}: {differing[0]} is "
                f"{other[differing[0]]!r} there and {run[differing[0]]!r} here. Every process must have "
                "the same arguments, images and weights; weights that are neither pretrained nor from a "
                "file are random in each process."
            )


def _limit(model: Any, tokens: int, r: R) -> float | None:
    try:
        return float(model.tome.arithmetic.limit(tokens, r))
    except UnsupportedModelError:
        return None
