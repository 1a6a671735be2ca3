"""Try an installed tomecore, in an environment and a folder that have nothing else.

python -I smoke.py VERSION core     # installed without extras
python -I smoke.py VERSION cli      # installed with the extra "cli"
"""

from __future__ import annotations

import importlib
import importlib.resources
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

import tomecore
from tomecore.errors import MissingLibraryError

COMMAND = Path(sys.executable).with_name("tomecore")
#: extra -> the module that needs it
FRAMEWORKS = {"torch": "tomecore.adapters.torch", "paddle-cpu": "tomecore.adapters.paddle"}
#: files in the package that are not Python
DATA = (
    "py.typed",
    "models/data/digits_vit.safetensors",
    "visualization/data/visualize.html",
    "backends/kernels/README.md",
    "adapters/engine/README.md",
)


def call(*arguments: str, status: int = 0) -> str:
    """Run the command ``tomecore``, and return what it prints."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == status, f"tomecore {arguments} ended with {done.returncode}: {text}"
    return text


def try_package(version: str) -> None:
    """The package is the installed one, with its data, and its modules resolve or name what is missing."""
    assert Path(tomecore.__file__).is_relative_to(sys.prefix), tomecore.__file__
    assert tomecore.__version__ == version, tomecore.__version__
    files = importlib.resources.files("tomecore")
    missing = [name for name in DATA if not files.joinpath(name).is_file()]
    assert not missing, f"the package lacks {missing}"
    for name in dir(tomecore):
        assert getattr(tomecore, name) is not None, name


def try_merging() -> None:
    """Tokens merge in NumPy: 3 of 9, and each of the 9 is counted once."""
    rng = np.random.default_rng(0)
    keys, tokens = rng.normal(size=(2, 9, 4)), rng.normal(size=(2, 9, 5))
    plan = tomecore.bipartite_soft_matching(keys, r=3, protected=1)
    merged, sizes = tomecore.merge_weighted(plan, tokens)
    assert merged.shape == (2, 6, 5)
    assert sizes.sum(axis=1).tolist() == [9, 9]
    assert plan.unmerge(merged).shape == tokens.shape
    means = (merged * sizes[..., None]).sum(axis=1) / 9
    np.testing.assert_allclose(means, tokens.mean(axis=1))


def try_missing() -> None:
    """A framework that is not installed is an error with the command that installs it."""
    for extra, module in FRAMEWORKS.items():
        try:
            importlib.import_module(module)
        except MissingLibraryError as error:
            message = str(error)
        else:
            raise AssertionError(f"{module} was imported in an environment without its framework")
        assert "pip install" in message, message
        assert extra in message, message


def core() -> None:
    """Without extras: the command names the extra that it needs."""
    text = call("--help", status=1)
    assert "typer is not installed" in text, text
    assert "cli" in text, text


def cli() -> None:
    """With the extra "cli": help, versions, and the digits that come with the package."""
    help_text = call("--help")
    for command in ("bench", "demo", "evaluate", "export", "info", "parity", "plan", "visualize"):
        assert command in help_text, f"{command} is not in: {help_text}"
        assert "--help" in call(command, "--help")
    assert tomecore.__version__ in call("info")
    images, labels = tomecore.digits.load("test")
    assert len(images) == len(labels) == 454
    text = call("plan", "--model", "digits:torch", "--r", "8", status=1)
    assert "torch is not installed" in text, text


def main() -> None:
    version, level = sys.argv[1:]
    warnings.simplefilter("error")
    try_package(version)
    try_merging()
    try_missing()
    {"core": core, "cli": cli}[level]()


if __name__ == "__main__":
    main()
