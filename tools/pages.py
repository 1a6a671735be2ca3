"""The pages of the documentation: the parts that tools write, and the code that runs.

This module needs only the standard library, so it also runs in an environment that has nothing else
(``run_page.py``).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "ROOT",
    "SUPPORTED",
    "Block",
    "blocks",
    "expected_lines",
    "shell_lines",
    "with_part",
    "without_blocks",
]

ROOT = Path(__file__).parents[1]
#: the page with the table of models and the table of versions
SUPPORTED = ROOT / "docs" / "supported.md"
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code: its language, the line of the page on which its source begins, and the source."""

    language: str
    line: int
    source: str


def with_part(page: str, begin: str, part: str, end: str) -> str:
    """Return ``page`` with ``part`` between the lines ``begin`` and ``end``, in place of the old part."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(
            f"the page has no {begin.strip()!r} ... {end.strip()!r}: put them where the table goes"
        )
    return f"{before}{begin}\n{part}\n{end}{after}"


def blocks(text: str, *languages: str) -> list[Block]:
    """Return the blocks of code of a page in these languages, in order; of all languages without any."""
    found = (
        Block(m[2], text.count("\n", 0, m.start()) + 2, re.sub(f"(?m)^{m[1]}", "", m[3]))
        for m in _FENCE.finditer(text)
    )
    return [block for block in found if not languages or block.language in languages]


def without_blocks(text: str) -> str:
    """Return the prose of a page."""
    return _FENCE.sub("", text)


def expected_lines(source: str) -> list[str]:
    """Return the lines that a block of Python must print: the text after each ``# ->``."""
    return re.findall(r"# -> (.*)$", source, re.MULTILINE)


def shell_lines(source: str) -> list[str]:
    """Return the commands of a block of bash: continued lines joined, without comments."""
    lines = source.replace("\\\n", " ").splitlines()
    found = (re.sub(r"(^|\s\s)#.*", "", line).strip() for line in lines)
    return [line for line in found if line]
