"""The table of models is what the families say."""

from __future__ import annotations

import pytest
from scripts import load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/support_table.py")


def test_the_page_is_up_to_date(tool):
    page = tool.SUPPORTED.read_text(encoding="utf-8")
    assert tool.updated(page) == page, "run tools/support_table.py"


def test_a_page_behind_the_families_is_noticed(tool):
    page = tool.SUPPORTED.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| timm VisionTransformer |"))
    behind = page.replace(row + "\n", "")
    assert behind != page
    assert tool.updated(behind) == page


def test_a_page_without_the_markers_is_an_error(tool):
    with pytest.raises(SystemExit, match=r"the page has no '<!-- supported"):
        tool.updated("# tomecore\n")
