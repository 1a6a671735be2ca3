"""Importing tomecore imports no framework; an array of one imports that one and no other.

Each check runs in a fresh interpreter, and one shows that the check can fail.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FRAMEWORKS = ["torch", "paddle", "jax", "timm", "transformers", "torchvision", "paddleclas"]
TOOLS = ["sklearn", "matplotlib", "rich", "typer", "PIL", "safetensors", "scipy"]


def loaded_by(code: str) -> set[str]:
    """The frameworks and tools that are in ``sys.modules`` after ``code`` ran."""
    report = f"import json, sys; print(json.dumps([n for n in {FRAMEWORKS + TOOLS} if n in sys.modules]))"
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import tomecore",
        "import tomecore.adapters",
        "import tomecore.backends",
        "import tomecore.schedule, tomecore.errors",
        "import tomecore.adapters.engine.patch, tomecore.adapters.families.timm.vit",
        "import tomecore; dir(tomecore); tomecore.adapters; tomecore.backends; tomecore.models",
        "import tomecore; tomecore.tokens_per_layer(12, (16, -1), 197)",
        "from tomecore import benchmark, demo, evaluation, frameworks, loading, parity, visualization",
        "import numpy, tomecore; list(tomecore.bipartite_soft_matching(numpy.ones((1, 8, 4)), 2))",
    ],
)
def test_no_framework(code):
    assert loaded_by(code) == set()


@pytest.mark.parametrize(("framework", "other"), [("torch", "paddle"), ("paddle", "torch")])
def test_only_the_framework_asked_for(framework, other):
    loaded = loaded_by(
        f"import tomecore, {framework}\n"
        f"tomecore.bipartite_soft_matching({framework}.ones([1, 8, 4]), 2)\n"
        f"tomecore.adapters.{framework}\n"
    )
    assert framework in loaded
    assert other not in loaded


def test_the_check_can_fail():
    assert "torch" in loaded_by("import tomecore, torch")
    assert loaded_by("import sys; sys.modules['rich'] = None") == {"rich"}
