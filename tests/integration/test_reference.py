"""docs/reference has what the docstrings and the help of the commands say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from scripts import ROOT, load_script

import tomecore


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/reference.py")


@pytest.fixture(scope="module")
def pages(tool):
    return tool.pages()


def test_the_pages_are_up_to_date(tool, pages):
    committed = {path.name: path.read_text(encoding="utf-8") for path in tool.FOLDER.iterdir()}
    assert pages == committed, "run tools/reference.py"


def test_every_public_name_of_the_core_is_there(pages):
    names = {*tomecore.__all__, "apply_patch", "remove_patch", "export"} - {"__version__"}
    assert {name for name in names if f"\n## {name}\n" not in pages["tomecore.md"]} == set()


def test_what_documents_name_is_there(pages):
    assert "\n## load\n" in pages["digits.md"]
    assert '"img_size": 56,' in pages["digits.md"]
    assert "\n### VisionTransformer.from_config\n" in pages["models.paddle.md"]
    assert "\n## load_weights\n" in pages["models.torch.md"]
    assert "\n## Preprocess\n" in pages["loading.images.md"]
    assert "\n## all_tokens\n" in pages["model.tome.md"]


def test_a_changed_docstring_is_noticed(tool, pages, monkeypatch, tmp_path):
    for name, text in pages.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "old.md").write_text("of a module that is gone")
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tomecore.compose, "__doc__", "Something else.")
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    with pytest.raises(SystemExit, match=r"docs/reference: old\.md, tomecore\.md; run"):
        tool.main()
    monkeypatch.setattr(sys, "argv", ["reference.py"])
    tool.main()
    assert {path.name for path in tmp_path.iterdir()} == set(pages)
    assert "Something else." in (tmp_path / "tomecore.md").read_text(encoding="utf-8")


def example(values, *, many=(1, 2), how=len) -> list[int]:
    """Do a thing of :func:`other` and :func:`for_tokens`, with :class:`tomecore.MergePlan`.

        example(values)

    More of it in ``docs/which-r.md``.

    Args:
        values: what ``it`` is,
            and more: a second line.
        many: how many.

    Returns:
        Ints.
    """


def test_how_a_docstring_becomes_markdown(tool):
    assert tool.entry("tomecore.schedule", "example", example) == (
        "\n## example\n\n```\nexample(values, *, many=(1, 2), how=...) -> list[int]\n```\n\n"
        "Do a thing of `other` and [`for_tokens`](schedule.md#for_tokens), with "
        "[`tomecore.MergePlan`](tomecore.md#mergeplan).\n\n```\nexample(values)\n```\n\nMore of it in "
        "[`docs/which-r.md`](../which-r.md).\n\n"
        "**Args**\n\n- `values`: what `it` is,\n  and more: a second line.\n- `many`: how many.\n\n"
        "**Returns**\n\nInts.\n"
    )


def test_constants_have_their_text(tool):
    assert tool.constant("tomecore.schedule.gpu", "FUSED") == (
        "```\nFUSED = Merge(launches=6, bytes=6.5)\n```\n\nThe fused kernels (Triton)\n"
    )
    with pytest.raises(ValueError, match=r"tomecore\.schedule\.gpu assigns no NOTHING"):
        tool.constant("tomecore.schedule.gpu", "NOTHING")


def test_every_command_and_option_is_there(pages):
    from typer.core import TyperArgument
    from typer.main import get_command

    from tomecore.cli import app

    page = pages["command-line.md"]
    for name, command in get_command(app).commands.items():
        part = re.search(rf"(?s)\n## {name}\n(.*?)(?=\n## |\Z)", page)[1]
        for parameter in command.params:
            shown = parameter.opts[0]
            if isinstance(parameter, TyperArgument):
                shown = parameter.metavar or shown
            assert parameter.hidden or shown in part, (name, parameter.name)
    assert re.search(r"(?m)^\| `--limit` int \| `64` \| .* \(x>=4\) \|$", page)


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("--r <str>", "As in [0, 0].", "| `--r` str |  | As in [0, 0]. |\n"),
        ("-a, --all <list[int]>", "[required]", "| `-a, --all` int, several | required |  |\n"),
        ("--b <int range>", "B.  [default: [0]; x>=1]", "| `--b` int | `[0]` | B. (x>=1) |\n"),
        ("--c <a|b>", "C | d.  [default: a]", "| `--c` | `a` | C &#124; d. One of `a`, `b`. |\n"),
        ("--d <path>", "D.  [default: (none)]", "| `--d` path | none | D. |\n"),
        ("--yes / --no", "E.", "| `--yes / --no` |  | E. |\n"),
    ],
)
def test_the_row_of_an_option(tool, name, text, row):
    assert tool.option_row(name, text) == row


def test_commands_in_help_are_code(tool):
    assert tool.help_text("Do.\n\nExample: tomecore do\n    --it\n\n\b\na\n b") == (
        "Do.\n\nExample:\n\n```\ntomecore do --it\n```\n\n```\na\n b\n```\n"
    )


def test_variables_of_the_environment_are_documented():
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    read = {
        name
        for path in Path(tomecore.__file__).parent.rglob("*.py")
        for name in re.findall(
            r"environ(?:\.get\(|\[)\s*\"(\w+)\"", path.read_text(encoding="utf-8")
        )
    }
    assert {"TOMECORE_KERNELS", "NVIDIA_TF32_OVERRIDE", "COLUMNS"} <= read
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_the_fields_of_a_plan_are_documented():
    from typer.testing import CliRunner

    from tomecore.cli import app

    result = CliRunner().invoke(app, ["plan", "--model", "digits:torch", "--r", "8", "--json", "-"])
    assert result.exit_code == 0, result.output
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    fields = re.findall(r"(?m)^\| (`.*?) \|", page[: page.index("\n## bench")])
    assert set(json.loads(result.stdout)) <= set(re.findall(r"`(\w+)`", " ".join(fields)))
