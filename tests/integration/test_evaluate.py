"""``tomecore evaluate`` on folders of images: its counts against plain NumPy, and its errors."""

from __future__ import annotations

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_files import STEEP, write_folder
from PIL import Image
from typer.testing import CliRunner, Result

from tomecore import cli
from tomecore.cli._several import one_each
from tomecore.errors import TomeError
from tomecore.evaluation import Pictures
from tomecore.frameworks import predict
from tomecore.loading import load
from tomecore.models import digits

COUNT = 23


def run(*arguments: Any) -> Result:
    batch = [] if "--batch" in arguments else ["--batch", "8"]
    common = ["evaluate", *map(str, arguments), *batch]
    return CliRunner().invoke(cli.app, common, env={"COLUMNS": "200"})


def numbers(path: Path, *arguments: Any, code: int = 0) -> dict[str, Any]:
    result = run(*arguments, "--json", path)
    assert result.exit_code == code, result.output + repr(result.exception)
    return json.loads(path.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    return (tmp_path / "data", *write_folder(tmp_path / "data", COUNT))


def expected(framework: str, images: np.ndarray, labels: np.ndarray, r: Any) -> dict[str, int]:
    model = digits.build(framework)
    reference = predict(model, images).argmax(-1)
    patched = importlib.import_module(f"tomecore.adapters.{framework}").apply_patch(model, r=r)
    outputs = predict(patched, images)
    best = np.argsort(-outputs, axis=1)
    return {
        "right": int((best[:, 0] == labels).sum()),
        "right5": int((best[:, :5] == labels[:, None]).any(1).sum()),
        "same": int((best[:, 0] == reference).sum()),
    }


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_counts_are_those_of_a_plain_computation(
    framework: str, folder: Any, tmp_path: Path
) -> None:
    path, images, labels = folder
    plot = tmp_path / "plot.png"
    found = numbers(
        tmp_path / "found.json",
        *(path, "--model", f"digits:{framework}", "--r", 0, 8, STEEP, "--plot", plot),
        *("--batch", 7),
    )
    assert [row["r"] for row in found["rows"]] == [0, 8, STEEP]
    assert (found["images"], found["classes"], found["unreadable"]) == (COUNT, 10, [])
    for row in found["rows"]:
        counts = expected(framework, images, labels, row["r"])
        assert {name: row[name] for name in counts} == counts
        assert row["top1"] == counts["right"] / COUNT
        assert row["top5"] == counts["right5"] / COUNT
        assert row["agreement"] == counts["same"] / COUNT
    steep = found["rows"][2]
    assert 0 < steep["same"] < COUNT
    assert 0 < steep["right"] < steep["right5"] < COUNT
    assert [row["tokens"] for row in found["rows"]] == [197, 101, 3]
    assert [row["limit"] > 1 for row in found["rows"]] == [False, True, True]
    assert all(row["images_per_second"] > 0 and row["speedup"] > 0 for row in found["rows"])
    with Image.open(plot) as picture:
        assert min(picture.size) > 300


def test_the_table_and_both_spellings(folder: Any, tmp_path: Path) -> None:
    path, *_ = folder
    together = run(path, "--model", "digits:torch", "--r", "8", "(16,-1)", "--limit", 8)
    apart = run("--r", 8, "--r", "(16,-1)", path, "--model", "digits:torch", "--limit", 8)
    for result in (together, apart):
        assert result.exit_code == 0, result.output
        lines = [line.split() for line in result.stdout.splitlines()]
        assert [line[0] for line in lines if line and line[-1][-1] in "x-"] == [
            *("unpatched", "8"),
            "(16,",
        ]
        assert "digits:torch on 8 images" in result.stdout
        assert "Too few images to time: 1 x 8 images, and" in result.stdout
        assert "or use --batch 2 or less" in result.stdout


@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        ("D --r 0 8 (1,2) --batch 2", "D --r 0 --r 8 --r (1,2) --batch 2"),
        ("--r 8 D --model x", "--r 8 D --model x"),
        ("D --r=8 16 [1] -m 8", "D --r=8 --r 16 --r [1] -m 8"),
        ("D --schedule 8 16 --limit 3", "D --schedule 8 --schedule 16 --limit 3"),
        ("--limit 3 4 --r 1", "--limit 3 4 --r 1"),
        ("--r 1 2 -- 3", "--r 1 --r 2 -- 3"),
        ("--r 8 ./9 9", "--r 8 ./9 9"),
        ("D --r 8 a/t.json --json o.json", "D --r 8 --r a/t.json --json o.json"),
    ],
)
def test_one_option_for_each_r(given: str, repeated: str) -> None:
    assert one_each(given.split()) == repeated.split()


def test_every_kind_of_picture_is_the_same_picture(tmp_path: Path) -> None:
    """Grey, colour, transparent, palette, four inks, rotated by its tag: one digit, one prediction."""
    write_folder(tmp_path / "data", 12)
    kinds, digit = tmp_path / "kinds", Image.open(sorted((tmp_path / "data" / "3").iterdir())[0])
    kinds.mkdir()
    digit.save(kinds / "grey.png")
    digit.convert("RGB").save(kinds / "colour.bmp")
    digit.convert("RGBA").save(kinds / "transparent.png")
    digit.quantize(256).save(kinds / "palette.gif")
    digit.convert("CMYK").save(kinds / "inks.jpg", quality=95)
    tags = Image.Exif()
    tags[0x0112] = 6  # "turn by 90 degrees to see it upright"
    digit.rotate(90).save(kinds / "turned.jpg", quality=95, exif=tags)
    pictures = Pictures(sorted(kinds.iterdir()), load("digits:torch").image, kinds)
    arrays = np.stack([pictures[index] for index in range(len(pictures))])
    assert arrays.shape == (6, 1, 56, 56)
    assert np.abs(arrays - np.median(arrays, axis=0)).max() < 0.1
    found = numbers(tmp_path / "found.json", kinds, "--model", "digits:torch", "--r", 8)
    assert (found["images"], found["rows"][1]["same"]) == (6, 6)
    assert found["rows"][1]["top1"] is None


def test_broken_pictures_are_named_and_the_rest_is_kept(folder: Any, tmp_path: Path) -> None:
    path, images, labels = folder
    (path / "0" / ".hidden.png").write_bytes(b"hidden")
    (path / "0" / "notes.txt").write_text("no picture")
    for number in range(12):
        (path / "4" / f"broken{number:02d}.png").write_bytes(b"")
    whole = sorted((path / "7").iterdir())[0].read_bytes()
    (path / "7" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (path / "7" / "chunk.png").write_bytes(whole[:8] + struct.pack(">I", 99) + b"tEXt")
    result = run(path, "--model", "digits:torch", "--r", 8, "--json", tmp_path / "found.json")
    assert result.exit_code == 1
    assert "14 of 37 images could not be read" in result.stderr
    assert result.stderr.count("cannot be read as an image") == 10
    assert "and 4 more; --json lists all" in result.stderr
    assert "Skipped files that are not images: 1\n" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    named = [Path(one["path"]).name for one in found["unreadable"]]
    assert named == [*(f"broken{number:02d}.png" for number in range(12)), "chunk.png", "cut.png"]
    assert all("cannot be read as an image" in one["reason"] for one in found["unreadable"])
    assert found["images"] == COUNT
    counts = expected("torch", images, labels, 8)
    assert {name: found["rows"][1][name] for name in counts} == counts


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_digits_by_their_name(tmp_path: Path) -> None:
    found = numbers(
        tmp_path / "found.json", "digits", "--model", "digits:torch", "--limit", 20, "--no-labels"
    )
    assert (found["images"], found["rows"][0]["top1"]) == (20, None)
    found = numbers(
        tmp_path / "found.json", "digits", "--model", "digits:torch", "--limit", 20, "--amp", "bf16"
    )
    assert [row["r"] for row in found["rows"]] == [0, 8, 16]
    assert found["rows"][0]["right"] == 20


def test_what_an_interrupted_command_found_is_kept(folder: Any, tmp_path: Path) -> None:
    path, *_ = folder
    record = tmp_path / "record.jsonl"
    command = (path, "--model", "digits:torch", "--r", str(STEEP), "--resume", record)
    once = numbers(tmp_path / "once.json", *command)
    lines = record.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3
    record.write_bytes(b"".join(lines[:2]) + lines[2][:9])
    assert numbers(tmp_path / "again.json", *command)["rows"][1]["same"] == once["rows"][1]["same"]
    assert record.read_bytes().splitlines()[:2] == [line.rstrip() for line in lines[:2]]
    assert [json.loads(line).get("chunk") for line in record.read_text().splitlines()] == [
        None,
        0,
        1,
        2,
    ]
    assert (
        numbers(tmp_path / "third.json", *command)["rows"]
        == json.loads((tmp_path / "again.json").read_text())["rows"]
    )
    with pytest.raises(TomeError, match=r"to another run \(r: \[0, \[98.* there, \[0, 8\] here\)"):
        raise run(path, "--model", "digits:torch", "--r", 8, "--resume", record).exception  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder or CSV file nowhere"),
        (["{tmp}/empty"], "has no images in it or in its folders"),
        (
            ["{tmp}/two"],
            r"has 2 class folders \(cat, dog\), and the model has 10 classes.*--classes",
        ),
        (["{tmp}/two", "--classes", "{tmp}/missing.txt"], "missing.txt cannot be read as text"),
        (["{tmp}/two", "--no-labels"], "none of 2 images could be read; the first: .*a.png"),
        (["digits", "--device", "gpu:0"], "`device` is 'gpu:0', but torch finds no GPU"),
        (["digits", "--device", "abacus"], "`device` is 'abacus', which torch cannot use"),
        (["digits", "--r", "[1,1,1,1,1,1,1,1,1,1,1,1,1]"], "13 numbers for a model of 12 layers"),
        (["digits", "--model", "digits:jax"], "digits:jax is not one of"),
        (
            ["digits", "--model", "paddle:tiny"],
            r"takes \(3, 224, 224\); use the model digits:torch or digits:paddle",
        ),
        (["digits", "--model", "digits:paddle", "--amp", "bf16"], "`amp` is for torch models"),
    ],
)
def test_errors_say_what_to_do(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "a.png").write_bytes(b"no picture")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    model = [] if "--model" in arguments else ["--model", "digits:torch"]
    result = run(*arguments, *model)
    assert result.exit_code == 1
    with pytest.raises(TomeError, match=message):
        raise result.exception  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "plot.txt"], "must end in .png, .svg or .pdf"),
        (["--r", "8x"], "is not an r"),
        (["--r", "0.5"], "allowed are a whole number"),
        (["--classes", "names.txt"], "the digits' classes are 0 to 9"),
    ],
)
def test_errors_of_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\n")
    arguments = [str(names) if one == "names.txt" else one for one in arguments]
    result = run("digits", "--model", "digits:torch", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
