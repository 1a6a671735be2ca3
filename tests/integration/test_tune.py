"""``tomecore tune`` writes a schedule, and ``--r`` of other commands reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tomecore import cli, schedule
from tomecore.errors import TomeError

TUNE = ["tune", "digits", "--model", "digits:torch", "--limit", "4", "--passes", "6"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.app, list(arguments))


def test_a_schedule_is_written_and_read(run: Any) -> None:
    Path("reads.py").write_text("def first(model, images):\n    return model(images)[:, :5]\n")
    options = ["--speedup", "2", "--resume", "state.json", "--read", "reads.py:first"]
    result = run(*TUNE, *options)
    assert result.exit_code == 0, result.output
    assert "4 held-out digits, half of them held back" in result.stdout
    assert "Found" in result.stdout or "No schedule was better" in result.stdout
    found = schedule.load("tuned.json")
    assert f"r = {list(found.r)}" in result.stdout
    assert (len(found.r), found.num_tokens) == (12, 197)
    assert found.speedup >= 2
    assert len(json.loads(Path("state.json").read_text())["losses"]) >= 2
    again = run(*TUNE, *options, "--output", "again.json")
    assert again.exit_code == 0, again.output
    assert schedule.load("again.json") == found
    planned = run("plan", "--model", "digits:torch", "--r", "tuned.json")
    assert planned.exit_code == 0, planned.output
    assert f"{found.speedup:.2f}x" in planned.stdout


def test_a_schedule_of_another_model_is_refused(run: Any) -> None:
    Path("tuned.json").write_text(json.dumps(schedule.Tuned((1, 2), 197, 1.1).as_dict()))
    result = run("plan", "--model", "digits:torch", "--r", "tuned.json")
    assert result.exit_code == 1
    assert "2 layers, but this model has 12" in str(result.exception)
    result = run("plan", "--model", "digits:torch", "--r", "missing.json")
    assert result.exit_code == 2
    assert "there is no file missing.json; give a file" in " ".join(result.stderr.split())


def test_what_a_schedule_was_found_for_is_checked(run: Any) -> None:
    """Another size and another matching are refused; another name is a warning: it may be the same model."""
    options = ["--speedup", "1.5", "--matching", "kth"]
    result = run(*TUNE, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    written = json.loads(Path("tuned.json").read_text())
    assert json.loads(result.stdout) == written
    assert written["schema"] == "tomecore schedule 1"
    assert (written["model"], written["matching"]) == ("digits:torch", "kth")
    assert "2 images held back are too few to rely on" in result.stderr
    bench = ["bench", "--r", "tuned.json", "--rounds", "1", "--batch", "1", "--model"]
    result = run(*bench, "digits:torch")
    assert "found with the matching 'kth', but this model merges with 'tome'" in str(
        result.exception
    )
    result = run(*bench, "digits:paddle", "--matching", "kth")
    assert result.exit_code == 0, result.output
    assert "was found for digits:torch, and the model is digits:paddle" in result.stderr
    assert "tuned.json" in result.stdout
    result = run(*bench, "timm:vit_tiny_patch16_224", "--matching", "kth")
    with pytest.raises(TomeError, match=r"needs 35\d million .*this model needs 1\.\d\d billion"):
        raise result.exception


def test_equal_images_are_refused(run: Any) -> None:
    Path("same").mkdir()
    for index in range(4):
        Image.new("L", (56, 56), 90).save(f"same/{index}.png")
    result = run("tune", "same", "--model", "digits:torch", "--speedup", "2")
    assert "holds the same image 4 times" in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speedup", "2", "--output", "tuned.txt"], "must end in .json"),
        (["--speedup", "2", "--limit", "3"], "4"),
        ([], "--speedup"),
    ],
)
def test_options_that_are_refused(run: Any, options: list[str], message: str) -> None:
    result = run(*TUNE, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_rule_of_a_plan(run: Any) -> None:
    result = run("plan", "--model", "digits:torch", "--speedup", "2", "--rule", "constant")
    assert result.exit_code == 0, result.output
    assert "digits:torch, 197 tokens, a limit of 2x, rule constant" in result.stdout
    result = run("plan", "--model", "digits:torch", "--r", "8", "--rule", "constant")
    assert result.exit_code == 2
    assert "needs --last or --speedup" in " ".join(result.stderr.split())
