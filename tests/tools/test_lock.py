"""The locks hold every package that is required, and a page says which versions they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from scripts import load_script

ROOT = Path(__file__).parents[2]
#: not in the lock of `make test`: what builds the package, and the extra `docs`
OTHERS = {"setuptools", "mkdocs-material"}


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_script("tools/lock.py")


def required() -> set[str]:
    """Every distribution that `make test` installs by name."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    names = set(re.findall(r'"([\w-]+)[>=]=[\d.]+"', project)) - OTHERS
    for file in sorted((ROOT / "tests" / "integration").glob("requirements*.txt")):
        lines = file.read_text(encoding="utf-8").splitlines()
        names |= {re.split("[><=]", line)[0] for line in lines if line and line[0] != "#"}
    return names


def test_the_page_is_up_to_date(tool: Any) -> None:
    page = tool.SUPPORTED.read_text(encoding="utf-8")
    assert tool.updated(page) == page, "run tools/lock.py table"


def test_a_page_behind_the_lock_is_noticed(tool: Any) -> None:
    page = tool.SUPPORTED.read_text(encoding="utf-8")
    version = tool.locked("full")["torch"]
    behind = page.replace(f"| {version} |", "| 1.0 |")
    assert behind != page
    assert tool.updated(behind) == page


def test_a_page_without_the_markers_is_an_error(tool: Any) -> None:
    with pytest.raises(SystemExit, match=r"the page has no '<!-- versions"):
        tool.updated("# tomecore\n")


def test_every_requirement_is_locked(tool: Any) -> None:
    names = {tool.normal(name) for name in required()}
    assert {"torch", "pytest", "peft", "paddle2onnx", "ruff"} <= names
    assert names - tool.locked("full").keys() == set()
    assert {"mkdocs", "mkdocs-material"} <= tool.locked("docs").keys()


@pytest.mark.parametrize("name", ["full", "bare", "docs"])
def test_a_lock_keeps_to_the_oldest_allowed(tool: Any, name: str) -> None:
    for distribution, version in tool.locked(name).items():
        assert Version(version) >= Version(tool.floors().get(distribution, "0")), distribution


@pytest.mark.parametrize("name", ["full", "bare", "docs"])
def test_a_lock_is_what_the_tool_writes(tool: Any, name: str) -> None:
    text = tool.path_of(name).read_text(encoding="utf-8")
    head, body = text.splitlines()[:2], text.splitlines()[2:]
    assert head[0] == "# CPython 3.11 on linux x86_64"
    assert tool.lines_of(text) == body


@pytest.mark.parametrize("name", ["full", "bare", "docs"])
def test_a_lock_has_no_version_of_the_project(tool: Any, name: str) -> None:
    """The next version could not be installed with it."""
    assert "tomecore" not in tool.locked(name)


def test_the_bare_environment_has_the_oldest(tool: Any) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    floors, bare = tool.floors(), tool.locked("bare")
    for name in ("torch", "numpy", "array-api-compat", "paddlepaddle"):
        (pinned,) = re.findall(rf'"{name}==([\d.]+)', makefile)
        assert pinned == bare[name]
        assert pinned.startswith(floors[name])


def test_the_lock_is_for_one_python(
    tool: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "running", lambda: "CPython 3.11 on linux x86_64")
    assert tool.constraint("full") == "-c locks/full.txt"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(tool, "running", lambda: "CPython 3.12 on linux x86_64")
    assert tool.constraint("full") == ""
    assert capsys.readouterr().err == (
        "locks/full.txt is for CPython 3.11 on linux x86_64, this is CPython 3.12 on linux x86_64: "
        "installing without a lock\n"
    )


@pytest.mark.parametrize("line", ["-e /home/me/a", "a @ file:///tmp/a.whl", "a>=1"])
def test_only_versions_are_locked(tool: Any, line: str) -> None:
    freeze = "# Editable install with no version control\nnumpy==2.4.6\ntorch==2.14.1+cpu\n"
    assert tool.lines_of(freeze) == ["numpy==2.4.6", "torch==2.14.1+cpu"]
    with pytest.raises(SystemExit, match=re.escape(f"takes name==version only, not {line}")):
        tool.lines_of(f"{freeze}{line}\n")


def test_pre_commit_has_the_ruff_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r'"ruff==([\d.]+)"', project)
    assert re.findall(r"ruff==([\d.]+)", hooks) == [version, version]
