"""Find images and their labels: in a folder of class folders, a CSV file, or a plain folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tomecore.errors import ArgumentValueError

__all__ = ["Found", "find", "read_names"]


@dataclass(frozen=True)
class Found:
    """The images at a path, and their labels.

    Args:
        root: the folder, or the folder of the CSV file.
        paths: paths of the images.
        texts: the label of each image, as text; None without labels.
        folders: names of the class folders, sorted; None for a CSV file and for a plain folder.
        others: number of files whose endings are not those of images.
    """

    root: Path
    paths: tuple[Path, ...]
    texts: tuple[str, ...] | None
    folders: tuple[str, ...] | None
    others: int = 0

    def labels(self, outputs: int, names: Sequence[str] | None = None) -> np.ndarray | None:
        """Return the class of each image, (n,) int64; None without labels.

        Args:
            outputs: number of classes of the model.
            names: names of the model's classes, in its order; None: the sorted class folders, or the
                numbers in the CSV file.

        Raises:
            ArgumentValueError: the classes are not those of the model, or their order is unknown.
        """
        if self.texts is None:
            return None
        if names is not None:
            return self._by_name(outputs, names)
        if self.folders is None:
            return self._by_number(outputs)
        if len(self.folders) != outputs:
            raise ArgumentValueError(
                f"{self.root} has {len(self.folders)} class folders ({_some(self.folders)}), and the "
                f"model has {outputs} classes. Say which are which with --classes FILE (one name per "
                "line, in the model's order), or leave the labels out with --no-labels."
            )
        if all(name.isdecimal() for name in self.folders):
            numbers = [int(name) for name in self.folders]
            if numbers != sorted(numbers):
                raise ArgumentValueError(
                    f"the class folders of {self.root} are numbers, whose order as text "
                    f"({_some(self.folders)}) is not that of counting. Say which is the model's with "
                    "--classes FILE (one name per line, in the model's order)."
                )
        index = {name: number for number, name in enumerate(self.folders)}
        return np.asarray([index[text] for text in self.texts], dtype=np.int64)

    def _by_name(self, outputs: int, names: Sequence[str]) -> np.ndarray:
        if len(names) != outputs:
            raise ArgumentValueError(
                f"--classes has {len(names)} names, and the model has {outputs} classes; the file must "
                "have one name per line, in the model's order"
            )
        index = {name: number for number, name in enumerate(names)}
        unknown = sorted({*(self.texts or ()), *(self.folders or ())} - index.keys())
        if unknown:
            raise ArgumentValueError(
                f"{self.root} has {len(unknown)} labels that are not in --classes: {_some(unknown)}. "
                f"It has {_some(names)}."
            )
        return np.asarray([index[text] for text in self.texts or ()], dtype=np.int64)

    def _by_number(self, outputs: int) -> np.ndarray:
        wrong = sorted({t for t in self.texts or () if not (t.isdecimal() and int(t) < outputs)})
        if wrong:
            raise ArgumentValueError(
                f"labels must be numbers from 0 to {outputs - 1}, as the model has {outputs} classes; "
                f"got {_some(wrong)}. If they are names, give --classes FILE (one name per line, in the "
                "model's order)."
            )
        return np.asarray([int(text) for text in self.texts or ()], dtype=np.int64)


def find(path: Path | str, labelled: bool = True) -> Found:
    """List the images at a path, except hidden files and folders.

    Args:
        path: a folder of class folders, which may contain more folders; a folder of images, which then
            have no labels; or a CSV file of paths, relative to it, and labels.
        labelled: whether to read labels; if not, all images at any depth are listed.

    Raises:
        ArgumentValueError: the path does not exist, it has no images, or it has images both in class
            folders and next to them.
    """
    path = Path(path)
    if path.is_file():
        return _find_listed(path, labelled)
    if not path.is_dir():
        raise ArgumentValueError(
            f"there is no folder or CSV file {path}; give one, or the word digits"
        )
    every = list(_files(path, set()))
    endings = _endings()
    paths = [file for file in every if file.suffix.lower() in endings]
    others = len(every) - len(paths)
    if not paths:
        raise ArgumentValueError(
            f"{path} has no images in it or in its folders"
            + (f", only {others} other files" if others else "")
            + "; give a folder with a folder of images for each class, or a folder of images"
        )
    beside = [file for file in paths if file.parent == path]
    if not labelled or len(beside) == len(paths):
        return Found(path, tuple(paths), None, None, others)
    if beside:
        raise ArgumentValueError(
            f"{path} has {len(beside)} images next to its class folders ({beside[0].name}); move them "
            "into their class, or leave the labels out with --no-labels"
        )
    texts = tuple(file.relative_to(path).parts[0] for file in paths)
    folders = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return Found(path, tuple(paths), texts, tuple(folders), others)


def read_names(path: Path | str) -> list[str]:
    """Return the names of classes in a file: one per line, in the model's order.

    Raises:
        ArgumentValueError: the file cannot be read, or it has no names, an empty line between them, or
            the same name twice.
    """
    path = Path(path)
    names = [line.strip() for line in _text_of(path).rstrip().splitlines()]
    if not names:
        raise ArgumentValueError(f"{path} has no names; write one per line, in the model's order")
    twice = sorted({name for name in names if names.count(name) > 1})
    if "" in names or twice:
        found = f"line {names.index('') + 1} is empty" if "" in names else f"twice: {_some(twice)}"
        raise ArgumentValueError(f"{path} must have one name per line, each once; {found}")
    return names


def _find_listed(path: Path, labelled: bool) -> Found:
    """Return the images in a CSV file of paths and labels, with or without a line of headings."""
    rows = [row for row in csv.reader(_text_of(path).splitlines()) if any(map(str.strip, row))]
    if rows and _is_heading(rows[0], path.parent):
        rows = rows[1:]
    if not rows:
        raise ArgumentValueError(f"{path} lists no images; write a line path,label for each")
    if labelled and {len(row) for row in rows} not in ({1}, {2}):
        wrong = next(row for row in rows if len(row) != 2)
        raise ArgumentValueError(
            f"{path}: every line must be path,label (or, without labels, all lines a path); got "
            f"{','.join(wrong)!r}"
        )
    texts = tuple(row[1].strip() for row in rows) if labelled and len(rows[0]) == 2 else None
    return Found(path.parent, tuple(path.parent / row[0].strip() for row in rows), texts, None)


def _is_heading(row: Sequence[str], root: Path) -> bool:
    """Whether the first line of a list cannot be an image and its label."""
    file = root / row[0].strip()
    numbered = len(row) > 1 and row[1].strip().isdecimal()
    return not numbered and file.suffix.lower() not in _endings() and not file.is_file()


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentValueError(
            f"{path} cannot be read as text ({error}); give a text file in UTF-8"
        ) from error


def _files(folder: Path, above: set[Path]) -> list[Path]:
    """Return all files below a folder, sorted; follow links to folders, but not in circles."""
    real = folder.resolve()
    if real in above:
        return []
    found: list[Path] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        found += _files(path, above | {real}) if path.is_dir() else [path]
    return found


def _endings() -> set[str]:
    from PIL import Image

    readable = Image.registered_extensions()
    return {ending for ending, kind in readable.items() if kind in Image.OPEN}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:5])}, ..."
