"""Messages about a missing package have the command that installs it, and documents have the same command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tomecore
from tomecore._project import install_command, install_hint
from tomecore.errors import MissingLibraryError
from tomecore.models import digits

ROOT = Path(__file__).parents[1]
PACKAGE = Path(tomecore.__file__).parent
#: pip's command with tomecore and its extras, where a reader copies it
COMMAND = re.compile(r'(?:pip install )\\?"(?:tomecore|\.)(?:\[([\w,-]+)\])?[^"\\]*\\?"')


def documents() -> list[Path]:
    """Every page and notebook; CHANGELOG.md is about the past."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return [*found, ROOT / "examples" / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]


def test_documents_install_as_the_project_says() -> None:
    shown = [
        (page.name, match[0].replace("\\", ""), match[1])
        for page in documents()
        for match in COMMAND.finditer(page.read_text(encoding="utf-8"))
    ]
    assert {"README.md", "first-steps-torch.md", "torch.ipynb"} <= {name for name, _, _ in shown}
    for name, command, extras in shown:
        assert command == install_command(*(extras.split(",") if extras else ())), name


def test_no_message_has_a_command_of_its_own() -> None:
    own = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if COMMAND.search(path.read_text(encoding="utf-8"))
    ]
    assert own == ["_project.py"]  # in its docstring


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingLibraryError, match="scikit-learn, which is not installed") as raised:
        digits.load("test")
    assert str(raised.value).endswith(f"install it with: {install_hint('cli')}")


def test_the_command_line_without_its_extra() -> None:
    code = "import sys; sys.modules['typer'] = None; import tomecore.cli"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = f"tomecore: typer is not installed; install it with: {install_hint('cli')}\n"
    assert (ended.returncode, ended.stderr) == (1, expected)
