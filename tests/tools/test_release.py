"""tools/release.py finds every fault it looks for; the files around a release agree with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, load_script

import tomecore

URL = "https://github.com/someone/tomecore"
METADATA = """Metadata-Version: 2.4
Name: tomecore
Version: 0.1.0
License-Expression: Apache-2.0
License-File: LICENSE
Requires-Python: >=3.10
Description-Content-Type: text/markdown

# The page
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_script("tools/release.py")


def address(path: str, ref: str, *, raw: bool) -> str:
    return f"{URL}/{'raw' if raw else 'blob'}/{ref}/{path}"


PAGE = """[a](docs/a.md#b) and ![c](docs/c.png), [![d](docs/d.svg)](LICENSE), [e](https://a.org), [f](#g)

```python
x = [1](2)
```

<img src="docs/h.png" alt="h"> <a href="docs/a.md">i</a>

[j]: docs/k.md
"""


def test_relative_links_become_absolute(tool: Any) -> None:
    assert sorted(tool.relative_links(PAGE)) == [
        *("LICENSE", "docs/a.md", "docs/a.md#b", "docs/c.png", "docs/d.svg", "docs/h.png"),
        "docs/k.md",
    ]
    changed = tool.with_absolute_links(PAGE, "v1", address)
    assert tool.relative_links(changed) == []
    assert f"[a]({URL}/blob/v1/docs/a.md#b)" in changed
    assert f"[![d]({URL}/raw/v1/docs/d.svg)]({URL}/blob/v1/LICENSE)" in changed
    assert f'src="{URL}/raw/v1/docs/h.png"' in changed
    assert "x = [1](2)" in changed
    assert "(https://a.org), [f](#g)" in changed


def test_a_file_that_a_package_lacks_or_should_not_have_is_named(tool: Any) -> None:
    files = ["README.md", "docs/a.md", "tomecore/__init__.py", "tomecore/py.typed"]
    written = ["PKG-INFO", "setup.cfg", "tomecore.egg-info/SOURCES.txt"]
    assert tool.faults_of_sdist([*files, *written], files) == []
    assert tool.faults_of_sdist([*files[:1], *files[2:], "notes.txt"], files) == [
        "the sdist lacks docs/a.md: add it to MANIFEST.in",
        "the sdist has notes.txt, which is not tracked",
    ]
    info = "tomecore-0.1.0.dist-info/METADATA"
    assert tool.faults_of_wheel([*files[2:], info], files, "0.1.0") == []
    assert tool.faults_of_wheel([files[2], info, "tests/test_a.py"], files, "0.1.0") == [
        "the wheel lacks tomecore/py.typed: see package-data in pyproject.toml",
        "the wheel has tests/test_a.py, which is not a file of the package",
    ]


def test_wrong_metadata_is_named(tool: Any) -> None:
    assert tool.faults_of_metadata(METADATA, "0.1.0", {}, "# The page\n") == []
    (version,) = tool.faults_of_metadata(METADATA, "0.2.0", {}, "# The page")
    assert version == "the metadata has Version '0.1.0', not '0.2.0'"
    (urls,) = tool.faults_of_metadata(METADATA, "0.1.0", {"Issues": URL}, "# The page")
    assert "not those of tomecore/_project.py" in urls
    (page,) = tool.faults_of_metadata(METADATA, "0.1.0", {}, "# Another page")
    assert page == "the description in the metadata is not README.md"


def test_a_release_has_one_version(tool: Any) -> None:
    texts = ("## 0.1.0 (2026-01-31)\n", 'version: 0.1.0\ndate-released: "2026-01-31"\n')
    assert tool.faults_of_tag("v0.1.0", "0.1.0", *texts) == []
    faults = tool.faults_of_tag("0.1.1", "0.1.0", "## 0.1.0 (unreleased)\n", "version: 0.0.9\n")
    assert [fault.split(" ", 1)[0] for fault in faults] == [
        *("the", "CHANGELOG.md", "CITATION.cff", "CITATION.cff"),
    ]


def test_only_a_git_checkout_is_released(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="a release is built from a git checkout"):
        tool.tracked()


def test_the_versions_agree(tool: Any) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert tool.version_of() == tomecore.__version__
    final = tomecore.__version__.partition(".dev")[0]
    assert re.search(rf"(?m)^version: {re.escape(final)}$", citation)
    assert re.search(rf"(?m)^## {re.escape(final)} \(", changelog)


def test_the_package_names_the_pythons_on_which_it_is_tried() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "package.yml").read_text(encoding="utf-8")
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    installed = re.findall(r"(?m)^ +(3\.\d+)$", workflow)
    assert sorted(installed) == named
    assert re.findall(r"--python python(3\.\d+)", workflow) == named


def test_hosted_workflows_call_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    called = [line.partition("run: ")[2] for line in lines if "run: " in line]
    assert ".ci/run" in called
    targets = {command.split()[1] for command in called if command.startswith("make ")}
    assert targets == {"release-check"}
    assert all(f"\n{target}: " in makefile for target in targets)


def test_a_bug_report_has_the_output_of_a_command_that_exists() -> None:
    form = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    assert "`tomecore info`" in form
    assert (ROOT / "tomecore" / "cli" / "info.py").exists()
