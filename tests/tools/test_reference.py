"""docs/reference.md says what the docstrings say."""

from __future__ import annotations

import pytest
from scripts import load_script

import tomecore


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/reference.py")


def test_the_page_is_up_to_date(tool):
    assert tool.page() == tool.PAGE.read_text(encoding="utf-8"), "run tools/reference.py"


def test_every_public_name_of_the_core_is_there(tool):
    text = tool.page()
    for name in set(tomecore.__all__) - {"__version__"}:
        assert f"### tomecore.{name}\n" in text


def test_a_changed_docstring_is_noticed(tool, monkeypatch):
    monkeypatch.setattr(tomecore.compose, "__doc__", "Something else.")
    assert tool.page() != tool.PAGE.read_text(encoding="utf-8")


def example(values, *, many=(1, 2), how=len) -> list[int]:
    """Do a thing of :func:`other`.

        example(values)

    More of it.

    Args:
        values: what ``it`` is,
            and more: a second line.
        many: how many.

    Returns:
        Ints.
    """


def test_how_a_docstring_becomes_markdown(tool):
    assert tool.entry("here", "example", example) == (
        "\n### here.example\n\n```\nexample(values, *, many=(1, 2), how=...) -> list[int]\n```\n\n"
        "Do a thing of `other`.\n\n```\nexample(values)\n```\n\nMore of it.\n\n"
        "**Args**\n\n- `values`: what `it` is,\n  and more: a second line.\n- `many`: how many.\n\n"
        "**Returns**\n\nInts.\n"
    )
