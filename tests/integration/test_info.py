"""``tomecore info``: the versions and devices that a bug report needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import tomecore
from tomecore import cli
from tomecore.frameworks import Torch


def test_it_shows_versions_devices_and_kernels() -> None:
    # A process of its own: whether kernels run is decided once in a process.
    environment = {**os.environ, "TOMECORE_KERNELS": "0", "COLUMNS": "80"}
    command = [sys.executable, "-m", "tomecore", "info"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = dict(line.split(":", 1) for line in result.stdout.splitlines())
    found = {name: text.strip() for name, text in lines.items()}
    assert found["tomecore"] == tomecore.__version__
    assert platform.python_version() in found["python"]
    for name in ("numpy", "torch", "paddlepaddle", "numba", "timm", "transformers"):
        assert found[name] == importlib.metadata.version(name)
    assert found["torch devices"]
    assert found["paddle devices"]
    assert "TOMECORE_KERNELS=0" in found["CPU kernels"]
    assert found["TOMECORE_KERNELS"] == "0"


def test_a_broken_framework_is_shown_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Torch) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(Torch, "cuda", property(broken))
    result = CliRunner().invoke(cli.app, ["info", "--json", "-"])
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout)
    assert (numbers["schema"], numbers["tomecore"]) == ("tomecore info 1", tomecore.__version__)
    devices = numbers["devices"]
    assert devices["torch"] == (
        "cannot be used: OSError: libcudart.so.13: cannot open shared object file"
    )
    assert "cannot be used" not in devices["paddle"]
