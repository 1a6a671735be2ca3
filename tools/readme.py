"""README.md, parts of which tools write: each between two comments, which mark its place."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["README", "with_part"]

README = Path(__file__).parents[1] / "README.md"


def with_part(readme: str, begin: str, part: str, end: str) -> str:
    """``readme`` with ``part`` between the lines ``begin`` and ``end``, in place of what was there."""
    before, _, rest = readme.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(
            f"README.md has no {begin.strip()!r} ... {end.strip()!r}: put them where the table goes"
        )
    return f"{before}{begin}\n{part}\n{end}{after}"
