"""The main job on a few of its own images: both frameworks, the table, the JSON, the image, the errors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tomecore import cli, demo
from tomecore.errors import TomeError
from tomecore.frameworks import FRAMEWORKS, predict, require
from tomecore.models import digits

QUICK = ["--images", "10", "--rounds", "1", "--batch", "2"]


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run(*arguments: str) -> Any:
        picture = ["--picture", str(tmp_path / "merged.png")]
        return CliRunner().invoke(
            cli.app, ["demo", *QUICK, *picture, *arguments], env={"COLUMNS": "200"}
        )

    return run


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    return digits.load("test")


def test_both_frameworks_in_one_table(run: Any, tmp_path: Path) -> None:
    result = run("--json", str(tmp_path / "numbers.json"))
    assert result.exit_code == 0, result.output
    for heading in (
        "framework",
        "tokens",
        "accuracy",
        "per s",
        "speed-up",
        "limit",
        "% of",
        "merge",
    ):
        assert heading in result.stdout
    for framework in ("torch", "paddle"):
        assert framework in result.stdout
    assert "identical predictions 100.00%" in " ".join(result.stdout.split())
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert [row["r"] for row in numbers["rows"]] == 2 * [None, 8, 16, [16, -1]]
    assert [row["tokens"] for row in numbers["rows"]][:4] == [197, 101, 11, 10]
    assert numbers["rows"][2]["limit"] == numbers["rows"][6]["limit"] > 1.9
    assert {row["accuracy"] for row in numbers["rows"]} <= set(np.arange(11) / 10)
    assert numbers["machine"]["torch"]
    assert numbers["machine"]["paddlepaddle"]
    assert len(numbers["parity"]) == 3
    for name in ("merged.png", "merged-photo.png"):
        assert name in result.stdout
        image = np.asarray(Image.open(tmp_path / name))
        assert image.ndim == 3
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


def test_both_frameworks_draw_the_same_photograph(tmp_path: Path) -> None:
    drawn = []
    for framework in ("torch", "paddle"):
        demo.draw_photo(framework, tmp_path / f"{framework}.png")
        drawn.append(np.asarray(Image.open(tmp_path / f"{framework}.png")).astype(int))
    assert (drawn[0] != drawn[1]).any(-1).mean() < 0.01


def test_one_framework_has_no_parity(run: Any) -> None:
    result = run("--framework", "torch")
    assert result.exit_code == 0, result.output
    assert "Parity: needs both frameworks." in result.stdout
    assert "paddle" not in result.stdout


def test_a_missing_framework_is_named_with_its_command(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "paddle" else found(name)
    )
    result = run()
    assert result.exit_code == 0, result.output
    assert f"install it with: {FRAMEWORKS['paddle']}" in " ".join(result.stdout.split())
    assert "torch" in result.stdout
    with pytest.raises(TomeError, match=r'paddle is not installed.*pip install ".*\[paddle-cpu\]'):
        require("paddle")


def test_a_folder_is_no_file(run: Any, tmp_path: Path) -> None:
    result = run("--json", str(tmp_path))
    assert result.exit_code == 2
    assert "is a folder" in result.stderr


def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise TomeError("nothing works")

    monkeypatch.setattr(demo, "run", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *QUICK])
    assert stop.value.code == 1
    assert "error: nothing works" in capsys.readouterr().err


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_held_out_accuracy(framework: str, held_out: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = held_out
    assert len(labels) >= 450
    model = digits.build(framework)
    assert (predict(model, images).argmax(-1) == labels).mean() > 0.97


def test_held_out_images_are_not_in_the_training_split(
    held_out: tuple[np.ndarray, np.ndarray],
) -> None:
    trained = {image.tobytes() for image in digits.load("train")[0]}
    assert not any(image.tobytes() in trained for image in held_out[0])
    assert len(trained) + len(held_out[0]) >= 1790


def test_shipped_weights_are_small() -> None:
    assert digits.weights_path().stat().st_size <= 4_000_000
