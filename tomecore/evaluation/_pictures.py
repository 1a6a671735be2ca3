"""Image files as inputs of a model, and a choice of them that is spread evenly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.errors import ArgumentValueError
from tomecore.loading.images import read_image

__all__ = ["Pictures", "evenly_spread"]


@dataclass(frozen=True)
class Pictures(Sequence[np.ndarray]):
    """Image files as inputs of a model; each is read when it is indexed.

    Args:
        paths: paths of the files.
        transform: turns an image into (C, H, W) float32: ``Loaded.image``.
        root: the folder that names in the digest are relative to.
    """

    paths: Sequence[Path]
    transform: Callable[[Any], np.ndarray]
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.transform(read_image(self.paths[index]))

    def read_all(self) -> tuple[list[tuple[Path, np.ndarray]], list[str]]:
        """Return (path, image) of all files that can be read, and the errors of the others."""
        read, unreadable = [], []
        for index, path in enumerate(self.paths):
            try:
                read.append((path, self[index]))
            except ArgumentValueError as error:
                unreadable.append(str(error))
        return read, unreadable

    def digest(self) -> str:
        """Return a digest of the files' names and sizes: the same on every machine that has a copy."""
        found = hashlib.sha256()
        for path in self.paths:
            size = path.stat().st_size if path.exists() else -1
            relative = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            found.update(f"{relative.as_posix()}\0{size}\n".encode(errors="surrogateescape"))
        return found.hexdigest()[:16]


def evenly_spread(count: int, limit: int | None) -> list[int]:
    """Return ``limit`` of ``count`` indices, spread evenly; all of them if there are not more."""
    if limit is None or limit >= count:
        return list(range(count))
    return [number * count // limit for number in range(limit)]
