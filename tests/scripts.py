"""Scripts of the repository as modules, for tests of their parts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

__all__ = ["ROOT", "load_script"]

ROOT = Path(__file__).parents[1]


def load_script(path: str) -> Any:
    """Load the module of ``path``, relative to the repository; files next to it can be imported meanwhile."""
    file = ROOT / path
    spec: Any = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(file.parent))
        spec.loader.exec_module(module)
    return module
