"""Without Numba, without its cache: models compute what they compute with the compiled kernels."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile

import numba
import numba.core.caching
import numpy as np
import pytest
import torch
from kernel_cases import fused, some

import tomecore.adapters.torch
from tomecore.backends.kernels.cpu import compile as compile_module
from tomecore.backends.kernels.cpu import fused as fused_module
from tomecore.models.torch import VisionTransformer


def ours():
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=4).eval()


SCRIPT = """
import sys
if sys.argv[1] == "hidden":
    sys.modules["numba"] = None
import numpy, torch, tomecore.adapters.torch as tome
from tomecore.backends.kernels.cpu import fused as fused_module
from tomecore.models.torch import VisionTransformer
torch.manual_seed(0)
model = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=4).eval()
with torch.no_grad():
    x = torch.linspace(0, 60, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
    found = tome.apply_patch(model, r=8).forward_features(x)
print(fused_module.unavailable())
print("tomecore.backends.kernels.cpu.loops" in sys.modules)
print(found.flatten()[::7].tolist())
"""


def in_a_process(how, **switches):
    environment = {**os.environ, **switches}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reason, kernels, numbers = done.stdout.splitlines()
    return reason, kernels == "True", np.array([float(n) for n in numbers.strip("[]").split(",")])


WITHOUT = {
    "switched off": ("as it is", {"TOMECORE_KERNELS": "0"}, "TOMECORE_KERNELS=0"),
    "no Numba": ("hidden", {}, "Numba cannot be imported"),
    "Numba switched off": ("as it is", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT"),
}


@pytest.fixture(scope="module")
def with_kernels():
    reason, kernels, numbers = in_a_process("as it is")
    assert reason == "None"
    assert kernels
    return numbers


@pytest.mark.parametrize(("how", "switches", "why"), WITHOUT.values(), ids=WITHOUT)
def test_without_kernels_the_numbers_are_the_same(how, switches, why, with_kernels):
    reason, kernels, numbers = in_a_process(how, **switches)
    assert why in reason
    assert not kernels
    np.testing.assert_allclose(numbers, with_kernels, 1e-5, 1e-5)


def test_where_nothing_can_be_compiled_the_calls_are_made(monkeypatch):
    """A compiler, or files that it kept and that have gone bad, may raise anything."""

    def broken(element):
        raise ValueError("what was kept cannot be read")

    model = tomecore.adapters.torch.apply_patch(ours(), r=8)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(compile_module, "compile_kernels", broken)
        monkeypatch.setattr(
            fused_module, "kernels", functools.cache(fused_module.kernels.__wrapped__)
        )
        with pytest.warns(
            RuntimeWarning, match=r"for float32 .*\(ValueError: what was kept"
        ) as seen:
            found = model(x)
    assert len(seen) == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_numba_keeps_of_two_dtypes_has_two_names(monkeypatch, tmp_path):
    """Its files of one name hold its results for several signatures, and nothing locks them."""
    monkeypatch.setattr(numba.core.config, "CACHE_DIR", str(tmp_path))
    for element in ("float32", "bfloat16"):
        compile_module.compile_kernels(element)
    indices = [path.name for path in tmp_path.rglob("*.nbi")]
    assert len(indices) == 4
    assert sum("bfloat16" in name for name in indices) == 2


def test_memory_that_ran_out_is_no_result(monkeypatch):
    """A compiled function that raises prints the error and returns 0. The kernels rely on that."""

    @numba.cfunc(numba.int64(numba.int64))
    def failing(number):
        if number > 1:
            raise MemoryError
        return 1

    assert failing.ctypes(1) == 1
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    assert failing.ctypes(2) == 0
    assert [one.exc_type for one in printed] == [MemoryError]
    units, merge = fused_module.kernels("float32")
    keys, x = some()
    for kernels in ((lambda *_: 0, merge), (units, lambda *_: 0)):
        monkeypatch.setattr(fused_module, "kernels", lambda element, kernels=kernels: kernels)
        with pytest.raises(MemoryError, match="2 x 15 tokens"):
            fused(keys, x)


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
        kernels = compile_module.compile_kernels("float32")
        assert made
        monkeypatch.setattr(fused_module, "kernels", lambda element: kernels)
        assert torch.equal(model(x), expected)
