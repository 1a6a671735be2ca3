"""Read images in threads, some batches ahead of the one that runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError

__all__ = ["Batch", "read_ahead"]

#: one batch: for each index the image, or the reason why it cannot be read
Batch = list[tuple[int, np.ndarray | str]]

#: batches that are read while one runs
_AHEAD = 2


def read_ahead(
    images: Any, chunks: Sequence[range], numbers: Sequence[int], workers: int | None
) -> Iterator[tuple[int, Batch]]:
    """Yield the images of each chunk, or why one cannot be read; later chunks are read meanwhile."""

    def read(index: int) -> np.ndarray | str:
        try:
            return np.asarray(images[index])
        except ArgumentValueError as error:
            return str(error)

    waiting: deque[tuple[int, list[Future[np.ndarray | str]]]] = deque()
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    try:
        for number in numbers:
            waiting.append((number, [pool.submit(read, index) for index in chunks[number]]))
            if len(waiting) > _AHEAD:
                yield _wait(waiting.popleft(), chunks)
        while waiting:
            yield _wait(waiting.popleft(), chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _wait(
    one: tuple[int, list[Future[np.ndarray | str]]], chunks: Sequence[range]
) -> tuple[int, Batch]:
    number, futures = one
    return number, [(i, f.result()) for i, f in zip(chunks[number], futures, strict=True)]
