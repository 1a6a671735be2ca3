"""``--fast``, which `make test-fast` uses, leaves out graphs and other models than plain ViTs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def collected(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    names = ("adapters/test_laws.py", "adapters/test_torch_only.py", "test_layering.py")
    files = [TESTS / name for name in names]
    ended = subprocess.run(
        [*command, *options, *map(str, files)], capture_output=True, text=True, check=True
    )
    return [line for line in ended.stdout.splitlines() if "::" in line]


def test_the_plain_models_are_left() -> None:
    every, fast = collected(), collected("--fast")
    left_out = [name for name in every if name not in fast]
    assert [name for name in fast if name not in every] == []
    graphs = [name for name in left_out if "test_torch_only.py" in name]
    assert graphs
    assert all("::test_compiled" in name or "::test_exported" in name for name in graphs)
    assert not any("::test_compiled" in name for name in fast)
    left_out = [name for name in left_out if name not in graphs]
    assert {name.partition("::")[0].rpartition("/")[2] for name in left_out} == {"test_laws.py"}
    kinds = ("distilled", "drop-path", "scaled", "average")
    assert all(any(f"-{kind}" in name for kind in kinds) for name in left_out)
    assert not any(f"-{kind}" in name for name in fast for kind in kinds)
    for framework in ("torch", "paddle"):
        assert any(f"[{framework}-plain" in name for name in fast)
