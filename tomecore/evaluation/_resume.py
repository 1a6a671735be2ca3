"""A file from which an interrupted evaluation continues: JSON lines, one for the run, then one per chunk.

A line is written at once and whole; a line that a crash has cut off is dropped when the file is read. A file
of another run, or of another format, is refused and left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.core.checks import check_writable
from tomecore.errors import ArgumentValueError
from tomecore.evaluation._result import Chunk
from tomecore.evaluation.distributed import Processes
from tomecore.frameworks import framework_of, to_numpy

__all__ = ["Record", "digest_of_array", "digest_of_model"]

_HEAD = "tomecore evaluate"


class Record:
    """The chunks found so far, by number.

    Args:
        path: the file; None stores nothing. Each of several processes has its own file, whose name begins
            with this one.
        run: everything that must be equal for numbers to belong to the same run, as plain data.
        processes: this process and the others.

    Raises:
        ArgumentValueError: the file belongs to another run, or has another format.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any], processes: Processes) -> None:
        self.path = path
        self.chunks: dict[int, Chunk] = {}
        if path is None:
            return
        check_writable(path, "resume")
        path = self.path = _share_of(path, processes)
        run = json.loads(json.dumps(dict(run)))
        head = json.dumps({_HEAD: run}).encode() + b"\n"
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole and not head.startswith(content):
            raise ArgumentValueError(_no_record(path))
        lines = whole.splitlines()
        if lines:
            self._check(lines[0], run)
            for line in lines[1:]:
                found = self._read(line)
                self.chunks[found["chunk"]] = found
        if len(content) > len(whole):
            os.truncate(path, len(whole))
        if not lines:
            self._append(head)

    def add(self, number: int, chunk: Chunk) -> None:
        """Store a chunk; it is in the file when this returns."""
        self.chunks[number] = {"chunk": number, **chunk}
        if self.path is not None:
            self._append(json.dumps(self.chunks[number]).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        path: Any = self.path
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            written = os.write(file, line)
            if written != len(line):
                raise OSError(
                    f"{self.path}: {written} of {len(line)} bytes written; free space on the disk"
                )
            os.fsync(file)
        finally:
            os.close(file)

    def _check(self, line: bytes, run: Mapping[str, Any]) -> None:
        found = self._read(line)
        if not isinstance(found.get(_HEAD), dict):
            raise ArgumentValueError(_no_record(self.path))
        before = found[_HEAD]
        other = [name for name in {**run, **before} if run.get(name) != before.get(name)]
        if other:
            differences = "; ".join(
                f"{name}: {before.get(name)!r} there, {run.get(name)!r} here" for name in other
            )
            hint = ""
            if "weights" in other:
                hint = " Weights that are neither pretrained nor from a file are random each time."
            raise ArgumentValueError(
                f"`resume`: {self.path} belongs to another run ({differences}).{hint} Repeat the command "
                "of that run, or name another file to start again."
            )

    def _read(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ArgumentValueError(_no_record(self.path))
        return found


def _no_record(path: Path | None) -> str:
    return (
        f"`resume`: {path} was not written by an evaluation, or was changed since; name another "
        "file, or one that does not exist yet"
    )


def _share_of(path: Path, processes: Processes) -> Path:
    """Return the file of this process; a run continues with as many processes as it began with."""
    world = processes.world
    share = re.compile(re.escape(path.name) + r"\.\d+of(\d+)")
    for other in sorted(path.parent.glob("*")):
        found = share.fullmatch(other.name)
        count = int(found[1]) if found else 1
        if (found or other == path) and count != world:
            raise ArgumentValueError(
                f"`resume`: {other} belongs to a run of {count} processes, but this run has {world}; "
                f"start {count}, or name another file to start again"
            )
    return path if world == 1 else path.with_name(f"{path.name}.{processes.rank}of{world}")


def digest_of_model(model: Any) -> str:
    """Return a digest of the framework, and of the names, shapes, dtypes and values of all weights."""
    found = hashlib.sha256(framework_of(model).encode())
    for name, value in sorted(model.state_dict().items()):
        if hasattr(value, "shape"):
            found.update(f"{name} {value.dtype}".encode())
            found.update(digest_of_array(to_numpy(value)).encode())
    return found.hexdigest()[:16]


def digest_of_array(array: np.ndarray) -> str:
    """Return a digest of shape, dtype and values."""
    array = np.asarray(array)
    found = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    found.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return found.hexdigest()[:16]
