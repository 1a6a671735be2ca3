"""The address of the project is one constant; the install command, the links and pyproject.toml follow it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tomecore import _project

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/someone/tomecore"


def metadata() -> dict[str, Any]:
    """The table ``[project]`` of pyproject.toml."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_project, "REPOSITORY", ADDRESS)


def test_the_urls_of_the_package_are_those_of_the_project() -> None:
    assert metadata().get("urls", {}) == _project.urls()


def test_a_published_package_has_an_address() -> None:
    assert _project.REPOSITORY is not None or not _project.PUBLISHED
    assert _project.REPOSITORY is None or not _project.REPOSITORY.endswith("/")


@pytest.mark.parametrize(
    ("extras", "command"),
    [((), 'pip install "."'), (("torch", "fast"), 'pip install ".[torch,fast]"')],
)
def test_without_an_address_a_clone_is_installed(
    extras: tuple[str, ...], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_project, "REPOSITORY", None)
    monkeypatch.setattr(_project, "PUBLISHED", False)
    assert _project.install_command(*extras) == command
    assert _project.install_hint(*extras) == f"{command} (in a clone of tomecore)"
    assert _project.urls() == {}
    assert _project.file_url("README.md") is None


@pytest.mark.usefixtures("public")
def test_with_an_address_git_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_project, "PUBLISHED", False)
    command = f'pip install "tomecore[torch] @ git+{ADDRESS}"'
    assert _project.install_command("torch") == _project.install_hint("torch") == command
    assert all(url.startswith(ADDRESS) for url in _project.urls().values())
    assert _project.file_url("docs/a.md", "v0.1.0") == f"{ADDRESS}/blob/v0.1.0/docs/a.md"
    assert _project.file_url("docs/a.png", raw=True) == f"{ADDRESS}/raw/main/docs/a.png"


@pytest.mark.usefixtures("public")
def test_once_published_its_name_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_project, "PUBLISHED", True)
    assert _project.install_hint("torch", "cli") == 'pip install "tomecore[torch,cli]"'
    assert _project.install_hint() == 'pip install "tomecore"'


def test_the_extras_that_commands_name_exist() -> None:
    assert {"torch", "paddle-cpu", "fast", "onnx", "cli"} <= {*metadata()["optional-dependencies"]}
