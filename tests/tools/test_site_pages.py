"""The hook of the documentation site: links of the repository become links of the site."""

from __future__ import annotations

import ast
import re

import pytest
from scripts import ROOT, load_script

DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/site_pages.py")


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("docs/faq.md", "[a](../examples/x.py)", "[a](examples/x.py.md)"),
        ("docs/how-to/a.md", "[a](../../examples/x.py)", "[a](../examples/x.py.md)"),
        ("docs/how-to/a.md", "[a](../../CONTRIBUTING.md#b)", "[a](../contributing.md#b)"),
        ("docs/how-to/a.md", "[a](../faq.md#b) [c](b.md)", "[a](../faq.md#b) [c](b.md)"),
        ("docs/faq.md", "[a](../benchmarks/results)", "[a](results.md)"),
        ("docs/faq.md", "![a](pictures/a.png)", "![a](pictures/a.png)"),
        ("docs/faq.md", "[a](../locks/full.txt)", "[a](locks/full.txt)"),
        (
            "README.md",
            "[a](docs/faq.md) ![b](docs/pictures/b.png)",
            "[a](faq.md) ![b](pictures/b.png)",
        ),
        ("README.md", '<a href="docs/faq.md#b">', '<a href="faq.html#b">'),
        ("README.md", '<img src="docs/pictures/b.png">', '<img src="pictures/b.png">'),
        (
            "examples/README.md",
            "[a](x.py) [b](../README.md)",
            "[a](examples/x.py.md) [b](overview.md)",
        ),
        ("benchmarks/results/a.md", "[a](b.json)", "[a](b.json)"),
        ("README.md", "[a](https://x.org/a.py) [b](#c)", "[a](https://x.org/a.py) [b](#c)"),
        ("README.md", "`[a](docs/faq.md)`\n\n```\n[a](docs/faq.md)\n```", None),
        ("README.md", "`a\nb` [`c`](docs/faq.md)", "`a\nb` [`c`](faq.md)"),
    ],
)
def test_links_are_those_of_the_site(tool, path, before, after):
    assert tool.relocate(before, path) == (before if after is None else after)


def test_files_outside_the_documents_are_found(tool):
    found = tool.outside()
    assert {*tool.PAGES, "benchmarks/results/cpu.json", "examples/custom_block.py"} <= found
    assert (
        "benchmarks/results/attention-forms-cpu.json" in found
    )  # from benchmarks/results/cpu-missed.md
    assert not any(path.startswith("docs/") for path in found)


def test_files_become_pages(tool):
    code = tool.page_of("examples/custom_block.py")
    assert "# examples/custom_block.py\n\n````python\n" in code
    assert code.startswith(tool.UNSEARCHED)
    assert "](faq.md)" in tool.page_of("README.md")
    assert not tool.page_of("README.md").startswith(tool.UNSEARCHED)


def test_a_notebook_becomes_a_page(tool):
    cells = [
        {"cell_type": "markdown", "source": ["# A\n", "b"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "text": ["1\n", "2\n"]},
                {"output_type": "display_data", "data": {"image/png": "ab\ncd\n"}},
            ],
        },
    ]
    assert list(tool.cells({"cells": cells})) == [
        "# A\nb",
        "````python\nprint(1)\n````\n",
        "````text\n1\n2\n````\n",
        "![What the code above draws](data:image/png;base64,abcd)",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a\n  - b\n", "line 2: indent what is inside a list item by four spaces"),
        ("- a\n\n  b\n", "line 3: indent what is inside a list item by four spaces"),
        ("Text:\n- a\n", "line 2: put an empty line before a list"),
        ("- a\n    - b\n\n    c\n- d\n  more of d\n- e\n", None),
        ("```\nText:\n- a\n  - b\n```\n", None),
    ],
)
def test_lists_that_would_not_be_lists_are_found(tool, text, fault):
    assert list(tool.faults(text)) == ([] if fault is None else [fault])


@pytest.mark.parametrize("page", [*DOCS, "README.md", "CONTRIBUTING.md", "examples/README.md"])
def test_lists_are_lists_on_the_site(tool, page):
    assert list(tool.faults((ROOT / page).read_text("utf-8"))) == []


def test_what_comes_from_other_hosts_is_found(tool):
    page = (
        '<script src="https://a.org/x.js"></script><link rel=stylesheet href=//b.org/x.css>'
        '<link rel="canonical" href="https://c.org/"><a href="https://d.org">d</a><img src="e.png">'
    )
    assert tool.loaded(page, ".html") == ["https://a.org/x.js", "//b.org/x.css"]
    assert tool.loaded("@import 'https://a.org';b{src:url(//c.org/d)}", ".css") == [
        "https://a.org",
        "//c.org/d",
    ]


def test_the_messages_of_refusals_are_quoted_as_they_are():
    page = (ROOT / "docs" / "faq.md").read_text("utf-8")
    section = page[page.index("## Why was my model refused?") : page.index("## Other errors")]
    quoted = [
        piece
        for row in re.findall(r"(?m)^\| (\".*?\")[^\"|]* \|", section)
        for message in re.findall(r'"([^"]+)"', row)
        for piece in re.split(r" \.\.\. |\d+\)?", message)
        if piece
    ]
    assert len(quoted) > 15
    messages = "\n".join(
        "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else str(node.value)
        for path in (ROOT / "tomecore" / "adapters").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )
    assert [piece for piece in quoted if piece not in messages] == []
