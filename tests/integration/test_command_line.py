"""Everything that commands share: tables of any width, ``--help``, the head of JSON, folders, progress."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from digit_files import write_folder
from rich.console import Console
from typer.testing import CliRunner, Result

import tomecore
from tomecore import cli
from tomecore.benchmark import Measurement, Profile
from tomecore.cli import _progress
from tomecore.cli._bench_tables import parts_of, table_of
from tomecore.cli._files import with_head
from tomecore.cli._output import plain_table, short_labels
from tomecore.exporting._quiet import hidden_output

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
#: the commands of the other parts of the repository may come without an example
WITH_EXAMPLE = ("bench", "evaluate", "export", "parity", "plan", "tune")


def run(*arguments: Any, columns: int = 200) -> Result:
    given = [str(argument) for argument in arguments]
    return CliRunner().invoke(cli.app, given, env={"COLUMNS": str(columns)})


def rendered(table: Any, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def cell(batch: int, r: int) -> Measurement:
    """A cell of a benchmark whose numbers are all different, and as wide as they get."""
    forms = ("unpatched", "merging", "dropping")
    return Measurement(
        model="timm:vit_base_patch16_224",
        framework="torch",
        r=r,
        batch=batch,
        image=(224, 224),
        tokens=197,
        tokens_left=197 - r,
        dtype="bfloat16",
        device="cuda:0",
        mode="compile",
        train=True,
        images_per_second=dict(zip(forms, (12345.6, 23456.7, 34567.8), strict=True)),
        speedup=1.91,
        speedup_quartiles=(1.82, 2.03),
        limit=2.14,
        limit_share=0.895,
        drop_speedup=2.07,
        drop_share=0.923,
        drop_share_quartiles=(0.9, 0.94),
        merge_share=0.037,
        peak_bytes=dict(zip(forms, (2**34, 2**35, 2**33), strict=True)),
        rounds=9,
    )


NUMBERS = (
    *("8", "184", "12345.6", "23456.7", "1.91x", "1.82-2.03", "2.14x", "90%", "2.07x"),
    *("92.3%", "3.7%", "16384", "32768"),
)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_number_of_a_benchmark_is_cut(width: int) -> None:
    cells = [cell(8, 13), cell(128, 13)]
    split = Profile(0.2, 0.1, {"attention with a bias": 0.06, "everything else": 0.04})
    for latency in (False, True):
        text = rendered(table_of(cells, ["13", "tuned.json"], latency), width)
        text += rendered(parts_of(cells[0], "13", split), width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        words = text.split()
        for number in NUMBERS:
            assert number in words or (latency and number in ("12345.6", "23456.7")), number
        parts = text.count("batch") - 1  # one is in the title of the profile
        assert words.count("tuned.json") == parts > (1 if width < 100 else 0)


def test_a_narrow_table_repeats_its_keys() -> None:
    table = plain_table(keys=1, title="A title " * 9, caption="a caption " * 9)
    for heading in ("layer", "one", "two", "three"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in range(2):
        table.add_row(str(layer), *(f"{layer}{name * 9}" for name in "abc"))
    wide, narrow = rendered(table, 80), rendered(table, 40)
    assert (wide.count("layer"), narrow.count("layer")) == (1, 2)
    for text in (wide, narrow):
        assert " ".join(text.split()).startswith(("A title " * 9).strip())
        for name in "abc":
            assert f"1{name * 9}" in text


def test_long_labels_are_explained() -> None:
    long = str(list(range(12)))
    assert short_labels(["8", long, "(16, -1)"]) == (["8", "r1", "(16, -1)"], [f"r1 = {long}"])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help(name: str) -> None:
    result = run(name, "-h", columns=80)
    assert result.exit_code == 0, result.output
    assert result.stdout == run(name, "--help", columns=80).stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\n" not in re.sub("\n\n", "", COMMANDS[name].help)  # no line breaks in a paragraph
    if name in WITH_EXAMPLE:
        assert "…" not in result.stdout
        (example,) = re.findall(r"Example: tomecore (.*?)$", COMMANDS[name].help, re.MULTILINE)
        assert example.startswith(f"{name} ")
    for option in COMMANDS[name].params:
        assert option.help, f"{name} {option.name} has no help"
        assert "\n" not in option.help
        if name in WITH_EXAMPLE:
            assert "[default" not in option.help  # rich takes it for a style


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    words = "tomecore plan --model digits"
    env = {
        "_TOMECORE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": "3",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "PYTHONPATH": str(Path(tomecore.__file__).parents[1]),
    }
    code = "from tomecore.cli import app; app(prog_name='tomecore')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    for framework in ("torch", "paddle"):
        assert re.search(rf"digits\W*:{framework}", done.stdout), (done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", 10)
    return tmp_path


MODEL = ("--model", "digits:torch")
JSON = {
    "plan": ("plan", *MODEL, "--r", "8"),
    "bench": ("bench", "--model", "timm:test_vit", "--r", "8", "--batch", "1", "--rounds", "1"),
    "evaluate": ("evaluate", "photos", *MODEL, "--r", "8", "--limit", "3", "--batch", "1"),
    "parity": ("parity", "digits:torch", "digits:torch", "--random", "1"),
    "schedule": ("tune", "photos", *MODEL, "--speedup", "1.2", "--limit", "4", "--passes", "6"),
}


@pytest.mark.parametrize("kind", JSON)
def test_every_json_has_one_head(kind: str, folder: Path) -> None:
    """On stdout there is nothing else, and the tables are on stderr."""
    printed = run(*JSON[kind], "--json", "-")
    assert printed.exit_code == 0, printed.output
    content = json.loads(printed.stdout)
    assert list(content)[:2] == ["schema", "tomecore"]
    assert (content["schema"], content["tomecore"]) == (
        f"tomecore {kind} 1",
        tomecore.__version__,
    )
    assert printed.stderr


def test_a_file_holds_what_is_printed(folder: Path) -> None:
    printed = run(*JSON["plan"], "--json", "-")
    written = run(*JSON["plan"], "--json", "out.json")
    assert (folder / "out.json").read_text() == printed.stdout
    assert "All numbers: out.json" in written.stdout


def test_numbers_that_json_does_not_have() -> None:
    found = with_head("plan", {"a": [float("nan"), 1.5], "b": (float("inf"), "x", None, True)})
    found = {name: found[name] for name in "ab"}
    assert (
        json.dumps(found, allow_nan=False) == '{"a": ["nan", 1.5], "b": ["inf", "x", null, true]}'
    )


@pytest.mark.parametrize(
    "arguments",
    [
        *((*JSON[kind], "--json", "none/a.json") for kind in JSON),
        (*JSON["schedule"], "--output", "none/a.json"),
        (*JSON["schedule"], "--resume", "none/a.json"),
        (*JSON["evaluate"], "--plot", "none/a.png"),
        (*JSON["evaluate"], "--resume", "none/a.json"),
        (*JSON["bench"], "--plot", "none/a.png"),
        ("export", *MODEL, "--r", "8", "--onnx", "none/a.onnx"),
        ("export", *MODEL, "--r", "8", "--onnx", "a.onnx", "--json", "none/a.json"),
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]}",
)
def test_a_missing_folder_is_refused(arguments: tuple[str, ...], folder: Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"Invalid value for {arguments[-2]}" in said.replace("'", "")
    assert "there is no folder none; create it first" in said
    assert not (folder / "none").exists()


class Waits:
    """An event that is waited for ``count`` times before it is set."""

    def __init__(self, count: int) -> None:
        self.left, self.seconds = count, []  # type: ignore[var-annotated]

    def wait(self, seconds: float) -> bool:
        self.left -= 1
        self.seconds.append(seconds)
        return self.left < 0

    def set(self) -> None:
        self.left = 0


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for the step that runs, on stderr, each time after twice as long; nothing on stdout."""
    bar = _progress.progress_bar()
    bar.add_task("measuring [1]", total=8, completed=3)
    bar._ended = Waits(2)  # type: ignore[attr-defined]
    bar._print()  # type: ignore[attr-defined]
    found = capsys.readouterr()
    assert found.err.splitlines() == ["measuring [1] (3 of 8) (0 s)"] * 2
    assert found.out == ""
    assert bar._ended.seconds[0] == 2  # type: ignore[attr-defined]


def test_a_quick_command_shows_no_progress() -> None:
    result = run("plan", *MODEL, "--r", "8")
    assert "building" not in result.output


def test_what_is_hidden_shows_up_if_the_work_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with hidden_output():
        print("from Python", flush=True)
        subprocess.run([sys.executable, "-S", "-c", "print('from elsewhere')"], check=True)
    assert capfd.readouterr() == ("", "")

    def fail() -> None:
        with hidden_output():
            print("the reason", flush=True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert capfd.readouterr() == ("", "the reason\n")


def test_what_is_hidden_shows_up_if_the_process_ends() -> None:
    code = (
        "import os\n"
        "from tomecore.exporting._quiet import hidden_output\n"
        "with hidden_output():\n"
        "    os.write(1, b'the reason\\n')\n"
        "    os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert done.stderr.startswith("the reason\n")
    assert done.stdout == ""
