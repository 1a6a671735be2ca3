"""The Triton kernels without a GPU: by the interpreter, compiled for GPUs, and where Triton is broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import interpreted
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tomecore.backends import Keys
from tomecore.backends.kernels.cuda import torch as kernels
from tomecore.backends.torch import BACKEND

SCRIPT = Path(interpreted.__file__)
NAMES = ["random_cases", *(check.__name__ for check in interpreted.CHECKS)]


@pytest.fixture(scope="module")
def checked() -> dict[str, str | None]:
    """The name of each check of the interpreter -> its traceback, or None if it passed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_finds_what_the_definition_says(name, checked):
    assert checked.keys() == set(NAMES)
    assert checked[name] is None, checked[name]


#: shape of the keys (N, H, D), width of the tokens, r, dtype -> what it adds
SHAPES = {
    "ViT-B": (197, 12, 64, 768, 16, torch.bfloat16),  # the usual one
    "wide heads, many merges": (577, 16, 80, 192, 280, torch.float32),  # several chunks of a key
    "the most tokens": (4097, 1, 64, 64, 2048, torch.float16),  # the largest plan
}
#: kernels that a shape compiles: of the others, only numbers differ
COMPILED = {
    "ViT-B": {"unit_keys", "best_partners", "make_plan", "move_tokens", "spread_gradients"},
    "wide heads, many merges": {"best_partners", "move_tokens"},
    "the most tokens": {"make_plan"},
}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


class Recorder:
    """Stands for a kernel: it notes the arguments of its launches, and launches nothing."""

    def __init__(self, kernel: Any, launches: list[Any]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **named: self.launches.append((self.kernel, args, named))


def launches(monkeypatch: pytest.MonkeyPatch, shape: str) -> list[Any]:
    """The kernels that a merge and its gradient launch, with their arguments."""
    assert kernels.available()
    operations = sys.modules["tomecore.backends.kernels.cuda.torch_operations"]
    found: list[Any] = []
    for name in COMPILED["ViT-B"]:
        monkeypatch.setattr(operations, name, Recorder(getattr(operations, name), found))
    count, heads, width, channels, r, dtype = SHAPES[shape]
    qkv, x = torch.empty(1, count, 3, heads, width, dtype=dtype), torch.empty(1, count, channels)
    size, x = torch.ones(1, count), x.to(dtype)
    key = qkv.permute(2, 0, 3, 1, 4)[1]
    merged, *_, tokens, into, _ = torch.ops.tomecore.match_and_merge(key, x, size, r, 1, dtype)
    torch.ops.tomecore.merge_gradient(merged, size, torch.ones(1, count - r), tokens, into)
    assert len(found) == 5
    return [launch for launch in found if launch[0].fn.__name__ in COMPILED[shape]]


def compile_for(
    architecture: int, kernel: Any, args: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Compile a kernel for an architecture as a launch with these arguments would."""
    options = {"num_warps": named.pop("num_warps", 4)}
    signature, attributes = dict.fromkeys(named, "constexpr"), {}
    for index, (parameter, value) in enumerate(zip(kernel.params, args, strict=False)):
        pointer = isinstance(value, torch.Tensor)
        signature[parameter.name] = POINTERS[value.dtype] if pointer else "i32"
        if pointer or (value % 16 == 0 and not parameter.do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=named, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


@pytest.mark.parametrize("architecture", [80, 90, 120])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_for_a_gpu_no_kernel_spills(
    shape, architecture, monkeypatch, tmp_path, record_property
):
    """Registers that do not fit would go through memory. The numbers come from the tool of Triton's wheel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    for kernel, args, named in launches(monkeypatch, shape):
        name = kernel.fn.__name__
        (tmp_path / name).write_bytes(
            compile_for(architecture, kernel, args, dict(named)).asm["cubin"]
        )
        command = [str(tool), "-res-usage", str(tmp_path / name)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown)}
        record_property(name, used["REG"])
        assert used.keys() == {"REG", "STACK", "LOCAL"}
        assert (used["STACK"], used["LOCAL"]) == (0, 0), f"{name} spills: {used}"
        assert used["REG"] <= 170, f"{name} uses {used['REG']} registers, so that few blocks fit"


@pytest.fixture
def on_cpu(monkeypatch):
    """Tensors of a CPU take the way of those on a GPU, and no failure was seen."""
    monkeypatch.setattr(kernels, "DEVICES", {"cpu"})
    monkeypatch.setattr(kernels, "_is_new_enough", lambda index: True)
    monkeypatch.setattr(kernels, "_failed", [])


def merge() -> Any:
    torch.manual_seed(0)
    return BACKEND.fused(
        Keys(torch.randn(1, 2, 9, 8), 1, 2), torch.randn(1, 9, 4), None, None, 2, 1
    )


def test_a_kernel_that_fails_warns_once(on_cpu):
    """Here there is no driver of a GPU."""
    with pytest.warns(RuntimeWarning, match=r"cannot run \(RuntimeError: 0 active drivers"):
        assert merge() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merge() is None


def test_memory_that_runs_out_is_not_a_broken_kernel(on_cpu, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError

    assert kernels.available()
    monkeypatch.setattr(torch.ops.tomecore, "match_and_merge", full)
    with pytest.raises(torch.OutOfMemoryError):
        merge()
    assert kernels.available()


BROKEN = """
import sys, warnings
from tomecore.backends import Keys
from tomecore.backends.kernels.cuda import torch as kernels
from tomecore.backends.torch import BACKEND
import torch
keys, x = Keys(torch.randn(1, 2, 9, 8), 1, 2), torch.randn(1, 9, 4)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    BACKEND.fused(keys, x, None, None, 2, 1)
    assert kernels._import.cache_info().misses == 0  # nothing of Triton is touched without a GPU
    kernels.DEVICES.add("cpu")
    kernels._is_new_enough = lambda index: True
    found = [BACKEND.fused(keys, x, None, None, 2, 1) for _ in range(2)]
assert found == [None, None]
assert "tomecore.backends.kernels.cuda.torch_operations" not in sys.modules
print([str(one.message) for one in seen])
"""


@pytest.mark.parametrize(
    ("switches", "package", "message"),
    [
        (
            {},
            "raise ImportError('a part is missing')",
            "cannot be imported (ImportError: a part is",
        ),
        ({"TOMECORE_KERNELS": "0"}, "raise ImportError('imported')", None),
    ],
    ids=["broken", "switched off"],
)
def test_a_triton_that_cannot_be_imported_warns_once(switches, package, message, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(package)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, **switches}
    command = [sys.executable, "-c", BROKEN]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if message is None:
        assert done.stdout == "[]\n"
    else:
        assert done.stdout.count("tomecore's kernels for GPUs") == 1
        assert message in done.stdout


def test_without_triton_nothing_warns(on_cpu, monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels._import.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert merge() is None
    finally:
        kernels._import.cache_clear()
