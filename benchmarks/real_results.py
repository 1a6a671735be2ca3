"""Read and write the files of results of ``real.py`` and ``real_schedules.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["load", "write"]


def load(path: Path, schema: str) -> dict[str, Any]:
    """Return the content of a file of results; exit if it has another schema."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != schema:
        raise SystemExit(f"{path} has the schema {content.get('schema')!r}, not {schema!r}")
    return content


def write(path: Path, text: str) -> None:
    """Write a file, and create its folder; an interruption leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
