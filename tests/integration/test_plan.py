"""``tomecore plan``: the table, its limit, and the marks of layers that cannot merge as many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tomecore import cli

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
    result = run("--model", TINY, "--r", "16", "--json", str(tmp_path / "out" / "plan.json"))
    assert result.exit_code == 0, result.output
    rows = cells(result.stdout)
    assert [row[0] for row in rows] == [str(layer) for layer in range(12)]
    assert rows[0][:4] == ["0", "16", "16", "181"]
    assert rows[-1][:4] == ["11", "16", "10*", "11"]  # of 21 tokens, one of them protected
    assert sum("*" in row[2] for row in rows) == 1
    assert "197 tokens" in result.stdout
    assert "1 of 12 layers cannot merge as many" in result.stdout
    found = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert f"{found['limit']:.2f}x" in result.stdout
    assert found["limit"] == pytest.approx(2.0, abs=0.1)
    assert [row["tokens"] for row in found["layers"]][-1] == 11


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
