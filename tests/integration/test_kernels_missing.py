"""Without Numba, without its cache: models compute what they compute with the compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numba.core.caching
import numpy as np
import pytest
import torch

import tomecore.adapters.torch
from tomecore.backends import _fused, _kernels
from tomecore.models.torch import VisionTransformer


def ours():
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=4).eval()


SCRIPT = """
import sys
if sys.argv[1] == "hidden":
    sys.modules["numba"] = None
import numpy, torch, tomecore.adapters.torch as tome
from tomecore.backends import _fused
from tomecore.models.torch import VisionTransformer
torch.manual_seed(0)
model = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=4).eval()
with torch.no_grad():
    x = torch.linspace(0, 60, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
    found = tome.apply_patch(model, r=8).forward_features(x)
print(_fused.unavailable())
print("tomecore.backends._kernels" in sys.modules)
print(found.flatten()[::7].tolist())
"""


def in_a_process(how, switch):
    environment = {**os.environ, "TOMECORE_KERNELS": switch}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reason, kernels, numbers = done.stdout.splitlines()
    return reason, kernels == "True", np.array([float(n) for n in numbers.strip("[]").split(",")])


def test_without_kernels_the_numbers_are_the_same():
    reason, kernels, expected = in_a_process("as it is", "1")
    assert reason == "None"
    assert kernels
    for how, switch, why in (("as it is", "0", "TOMECORE_KERNELS=0"), ("hidden", "1", "Numba")):
        reason, kernels, numbers = in_a_process(how, switch)
        assert why in reason
        assert not kernels
        np.testing.assert_allclose(numbers, expected, 1e-5, 1e-5)


@pytest.mark.parametrize("full", [False, True], ids=["no folder", "no space"])
def test_where_numba_cannot_write_it_compiles_anew(full, monkeypatch, tmp_path):
    """Numba finds out by trying, once with an empty file and then with what it compiled."""
    made = []

    def refuse(*args, **kwargs):
        made.append(kwargs)
        raise PermissionError(13, "Permission denied")

    def no_space(*args, **kwargs):
        made.append(args)
        raise OSError(28, "No space left on device")

    model = tomecore.adapters.torch.apply_patch(ours(), r=8)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        if full:
            monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))
            monkeypatch.setattr(numba.core.caching.os, "replace", no_space)
        else:
            monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        kernels = _kernels.compiled("float32")
        assert made
        monkeypatch.setattr(_fused, "kernels", lambda element: kernels)
        assert torch.equal(model(x), expected)
