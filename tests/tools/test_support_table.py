"""The README says what is supported, and the families say what the README says."""

from __future__ import annotations

import pytest
from scripts import load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/support_table.py")


def test_the_readme_is_up_to_date(tool):
    readme = tool.README.read_text(encoding="utf-8")
    assert tool.updated(readme) == readme, "run tools/support_table.py"


def test_a_readme_behind_the_families_is_noticed(tool):
    readme = tool.README.read_text(encoding="utf-8")
    row = next(
        line for line in readme.splitlines() if line.startswith("| timm VisionTransformer |")
    )
    behind = readme.replace(row + "\n", "")
    assert behind != readme
    assert tool.updated(behind) == readme


def test_a_readme_without_the_markers_is_an_error(tool):
    with pytest.raises(SystemExit, match=r"README\.md has no '<!-- supported"):
        tool.updated("# tomecore\n")
