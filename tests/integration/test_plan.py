"""``tomecore plan``: the table, its limit, and the marks of layers that cannot merge as many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tomecore import cli
from tomecore.adapters import apply_patch
from tomecore.cli.plan import _rounded
from tomecore.frameworks import predict
from tomecore.loading import load, tokens_of
from tomecore.schedule import Tuned

TINY = "timm:vit_tiny_patch16_224"


@pytest.fixture
def run() -> Any:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, ["plan", *arguments], env={"COLUMNS": "200"})

    return run


def cells(output: str) -> list[list[str]]:
    """Rows of the table."""
    rows = [line.split() for line in output.splitlines()]
    return [row for row in rows if len(row) == 5 and row[0].isdigit()]


def test_a_plan(run: Any, tmp_path: Path) -> None:
    result = run("--model", TINY, "--r", "16", "--json", str(tmp_path / "plan.json"))
    assert result.exit_code == 0, result.output
    rows = cells(result.stdout)
    assert [row[0] for row in rows] == [str(layer) for layer in range(12)]
    assert rows[0][:4] == ["0", "16", "16", "181"]
    assert rows[-1][:4] == ["11", "16", "10*", "11"]  # of 21 tokens, one of them protected
    assert sum("*" in row[2] for row in rows) == 1
    assert "197 tokens" in result.stdout
    assert "1 of 12 layers cannot merge as many" in result.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    assert f"{found['limit']:.2f}x" in result.stdout
    assert found["limit"] == pytest.approx(2.0, abs=0.1)
    assert [row["tokens"] for row in found["layers"]][-1] == 11


def test_numbers_on_stdout(run: Any) -> None:
    """With ``--json -`` stdout has the numbers and nothing else; the next command prints its table there."""
    result = run("--model", "digits:torch", "--r", "8", "--json", "-")
    assert json.loads(result.stdout)["num_tokens"] == 197
    assert "Limit by arithmetic" in result.stderr
    assert "Limit by arithmetic" in run("--model", "digits:torch", "--r", "8").stdout


def test_a_resolution(run: Any) -> None:
    result = run("--model", "paddle:tiny", "--r", "(16, -1)", "--resolution", "384")
    assert result.exit_code == 0, result.output
    assert "577 tokens" in result.stdout
    assert cells(result.stdout)[0][:4] == ["0", "32", "32", "545"]
    assert "cannot merge" not in result.stdout


@pytest.mark.parametrize(
    ("options", "left"),
    [(["--last", "98"], "98"), (["--ratio", "0.9"], None), (["--speedup", "1.5"], None)],
)
def test_wishes(run: Any, options: list[str], left: str | None) -> None:
    result = run("--model", "digits:paddle", *options)
    assert result.exit_code == 0, result.output
    assert "cannot merge" not in result.stdout
    if left is not None:
        assert cells(result.stdout)[-1][3] == left
    if options[0] == "--speedup":
        (limit,) = [line for line in result.stdout.splitlines() if line.startswith("Limit")]
        assert float(limit.split()[3].rstrip("x")) >= 1.5


@pytest.mark.parametrize("options", [[], ["--r", "8", "--last", "98"]], ids=str)
def test_one_wish_at_a_time(run: Any, options: list[str]) -> None:
    result = run("--model", TINY, *options)
    assert result.exit_code == 2
    assert "exactly one of --r, --ratio, --last, --speedup" in " ".join(result.stderr.split())


def test_an_impossible_wish_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "--model", "digits:torch", "--last", "2000"])
    assert stop.value.code == 1
    assert "at most 197" in " ".join(capsys.readouterr().err.split())


def test_what_a_gpu_would_do(run: Any, tmp_path: Path) -> None:
    """The sentence has the numbers of the file; where merging moves more than it saves, it says so."""
    wide = run("--model", "timm:vit_base_patch16_224", "--r", "16", "--json", str(tmp_path / "gpu"))
    found = json.loads((tmp_path / "gpu").read_text())["gpu"]
    low, high = found["fused"]
    assert 1 < low < high < found["calls"][0]
    sentence = f"faster above a batch size between {_rounded(low)} and {_rounded(high)}"
    assert sentence in " ".join(wide.stdout.split())
    narrow = run("--model", "digits:torch", "--r", "1")
    assert "no gain at any batch size" in " ".join(narrow.stdout.split())
    for arguments in (("--model", TINY, "--r", "0"), ("--model", "digits:paddle", "--r", "8")):
        assert "GPU" not in run(*arguments).stdout


def test_an_image_that_the_model_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "--model", "timm:test_vit", "--r", "2", "--resolution", "33"])
    assert stop.value.code == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "the model refuses an image of 3 x 33 x 33 (channels, height, width)" in text


@pytest.mark.parametrize(
    ("batch", "shown"), [(1, "1"), (9, "9"), (10, "10"), (34, "34"), (101, "110"), (3187, "3,200")]
)
def test_an_estimate_has_two_digits(batch: int, shown: str) -> None:
    assert _rounded(batch) == shown


@pytest.mark.parametrize(
    "name",
    [
        *(
            "timm:test_vit",
            "timm:vit_tiny_patch16_224",
            "torchvision:vit_b_32",
            "open_clip:ViT-B-32",
        ),
        *("transformers:vit", "digits:torch", "digits:paddle"),
    ],
)
def test_a_model_without_its_weights_is_the_same(name: str) -> None:
    """Its multiply-adds, and its tokens without running its blocks, are those of the whole model."""
    counted, whole = load(name, shapes_only=True), load(name)
    for one in (counted, whole):
        apply_patch(one.model)
    assert counted.model.tome.arithmetic == whole.model.tome.arithmetic
    tokens = tokens_of(counted)
    with torch.no_grad():
        predict(whole.model, np.zeros((1, *whole.input_shape), np.float32))
    assert tokens == whole.model.tome.num_tokens
    assert counted.input_shape == whole.input_shape


def test_a_short_title_of_a_file(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(Tuned((8,) * 12, 197, 1.3, model="timm:other").as_dict()))
    result = run("--model", "digits:torch", "--r", str(path))
    assert result.exit_code == 0, result.output
    assert f"digits:torch, 197 tokens, r = {path}" in result.stdout
    assert "was found for timm:other, and the model is digits:torch" in result.stderr
    assert "million multiply-adds instead of" in result.stdout
