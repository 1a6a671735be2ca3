"""How ``tomecore evaluate`` reads folders and CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tomecore.errors import ArgumentValueError
from tomecore.evaluation import Pictures, evenly_spread, find, read_names


def picture(path: Path, size: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size)).save(path)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for name in ("b/2.PNG", "b/deep/er/1.JPEG", "a/1.jpg", ".trash/1.png", "a/.hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "list.txt").write_text("no picture")
    (tmp_path / "c").mkdir()
    return tmp_path


def test_class_folders(classes: Path) -> None:
    found = find(classes)
    assert [path.relative_to(classes).as_posix() for path in found.paths] == [
        *("a/1.jpg", "b/2.PNG", "b/deep/er/1.JPEG"),
    ]
    assert found.folders == ("a", "b", "c")  # a class without images is a class
    assert found.labels(3).tolist() == [0, 1, 1]
    assert found.others == 1
    assert found.labels(4, ["b", "x", "c", "a"]).tolist() == [3, 0, 0]
    unlabelled = find(classes, labelled=False)
    assert unlabelled.paths == found.paths
    assert unlabelled.labels(3) is None


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        (1000, None, r"3 class folders \(a, b, c\), and the model has 1000 classes.*--classes"),
        (3, ["a", "b", "x"], "1 labels that are not in --classes: c. It has a, b, x"),
        (4, ["a", "b", "c"], "--classes has 3 names, and the model has 4 classes"),
    ],
)
def test_classes_that_do_not_match(classes: Path, outputs: int, names: Any, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        find(classes).labels(outputs, names)


def test_folders_named_by_numbers(tmp_path: Path) -> None:
    for name in ("0", "1", "2", "10"):
        picture(tmp_path / name / "1.png")
    with pytest.raises(ArgumentValueError, match=r"order as text \(0, 1, 10, 2\) is not that of"):
        find(tmp_path).labels(4)
    assert find(tmp_path).labels(4, ["0", "1", "2", "10"]).tolist() == [0, 1, 3, 2]
    (tmp_path / "10").rename(tmp_path / "3")
    assert find(tmp_path).labels(4).tolist() == [0, 1, 2, 3]


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "notes").mkdir()
    assert find(tmp_path).labels(10) is None
    picture(tmp_path / "cat" / "1.png")
    with pytest.raises(ArgumentValueError, match=r"1 images next to its class folders \(1.png\)"):
        find(tmp_path)
    assert len(find(tmp_path, labelled=False).paths) == 2


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "1.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "data")
    found = find(tmp_path / "data")
    assert [path.name for path in found.paths] == ["1.png"]
    assert found.folders == ("cat",)


@pytest.mark.parametrize("headings", ["", "path,label\n", "image file,class\n", "\ufeff"])
def test_lists(tmp_path: Path, headings: str) -> None:
    picture(tmp_path / "in, side" / "1.png")
    path = tmp_path / "list.csv"
    path.write_text(f'{headings}"in, side/1.png", 2\n\nmissing.jpg,0\n', encoding="utf-8")
    found = find(path)
    assert found.paths == (tmp_path / "in, side" / "1.png", tmp_path / "missing.jpg")
    assert found.labels(3).tolist() == [2, 0]
    assert found.labels(3, ["2", "x", "0"]).tolist() == [0, 2]
    with pytest.raises(ArgumentValueError, match=r"numbers from 0 to 1, .*; got 2. .*--classes"):
        found.labels(2)
    assert find(path, labelled=False).labels(3) is None
    path.write_text("gone,0\nmissing.jpg,1\n")
    assert find(path).labels(2).tolist() == [0, 1]  # the first line is not a heading


def test_lists_of_names_and_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("a.png,cat\nb.png,dog\n")
    with pytest.raises(ArgumentValueError, match=r"numbers from 0 to 2.*got cat, dog. If they are"):
        find(path).labels(3)
    assert find(path).labels(3, ["dog", "cow", "cat"]).tolist() == [2, 0]
    path.write_text("a.png\nb.png\n")
    assert find(path).labels(3) is None
    for wrong in ("a.png,1\nb.png\n", "a.png,1,2\n"):
        path.write_text(wrong)
        with pytest.raises(ArgumentValueError, match="every line must be path,label"):
            find(path)
    path.write_text("path,label\n")
    with pytest.raises(ArgumentValueError, match="lists no images"):
        find(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentValueError, match="cannot be read as text"):
        find(path)


def test_names_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("great white shark\n cat \n\n")
    assert read_names(path) == ["great white shark", "cat"]
    for text, message in (("", "no names"), ("a\n\nb", "line 2 is empty"), ("a\na", "twice: a")):
        path.write_text(text)
        with pytest.raises(ArgumentValueError, match=message):
            read_names(path)


def test_a_limit_takes_from_all_over() -> None:
    assert evenly_spread(10, 4) == [0, 2, 5, 7]
    assert evenly_spread(3, None) == evenly_spread(3, 9) == [0, 1, 2]


def test_the_digest_is_of_the_files(
    classes: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def digest(root: Path) -> str:
        return Pictures(find(root).paths, np.asarray, root).digest()

    before = digest(classes)
    copy = tmp_path_factory.mktemp("copy")
    for path in find(classes).paths:
        target = copy / path.relative_to(classes)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert digest(copy) == before
    picture(classes / "a" / "1.jpg", size=99)
    assert digest(classes) != before
