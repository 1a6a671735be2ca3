"""Run a patched ViT on the stand-in, and print as JSON what each block launches, copies and waits for.

It is the other half of ``test_cuda_launches.py``, in a process of its own. ``--fused``: with the Triton
kernels. Those go through the driver, which the stand-in does not log, so their launcher is replaced by one
that writes to the log; otherwise merging runs as PyTorch's calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ["TOMECORE_KERNELS"] = "1" if "--fused" in sys.argv else "0"

import timm
import torch
from stand_in import Log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tomecore.adapters.torch as tome
from tomecore.backends.torch import CONSTANTS, ROWS

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: how the launches of each block are counted: dtype of the weights, prop_attn
CELLS = {
    "bfloat16": ("bfloat16", True),
    "float16": ("float16", True),
    "float32": ("float32", True),
    "autocast": ("float32", True),
    "column": ("bfloat16", "column"),
}
BATCH, R, DEPTH = 256, 16, 3


def build(dtype: torch.dtype, prop_attn: Any = None, size: str = "tiny") -> Any:
    """Return a ViT, patched unless ``prop_attn`` is None."""
    with torch.device("cuda"):
        model = timm.create_model(f"vit_{size}_patch16_224", depth=DEPTH, weight_init="skip")
    model = model.to(dtype).eval()
    return model if prop_attn is None else tome.apply_patch(model, r=R, prop_attn=prop_attn)


def blockwise(log: Log, model: Any, call: Callable[[], object]) -> list[list[str]]:
    """Return the entries of each block in the second call; the first one fills caches of constants."""
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, number=number: log.mark(f"begin {number}"))
        block.register_forward_hook(lambda *_: log.mark("end"))
    call()
    entries: list[list[str]] = [[] for _ in model.blocks]
    current = None
    for line in log.record(call):
        if line.startswith("MARK") and " triton " in line:
            line = "LAUNCH triton " + line.split()[-1]
        if line.startswith("MARK"):
            current = int(line.split()[2]) if "begin" in line else None
        elif current is not None and not line.startswith("MATH"):
            entries[current].append(line)
    return entries


def launches(log: Log) -> dict[str, Any]:
    """Return the entries of each block for each cell, unpatched and patched."""
    found = {}
    for name, (dtype, prop_attn) in CELLS.items():
        images = torch.empty(BATCH, 3, 224, 224, device="cuda", dtype=DTYPES[dtype])
        cells = []
        for model in (build(DTYPES[dtype], None, "base"), build(DTYPES[dtype], prop_attn, "base")):

            def call(model: Any = model, images: Any = images, name: str = name) -> None:
                context = torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "autocast")
                with torch.no_grad(), context:
                    model(images)

            cells.append(blockwise(log, model, call))
        found[name] = cells
    return found


class Devices(TorchDispatchMode):
    """Record the calls that take or return a tensor that is not on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cuda":
                self.found.append(str(function))
        return out


def train(model: Any, images: torch.Tensor) -> None:
    model(images).float().sum().backward()


def passes(log: Log) -> dict[str, Any]:
    """Return copies to or from the host, waits and calls on other devices, in evaluation and in training."""
    found = {}
    for name, (dtype, prop_attn) in CELLS.items():
        model = build(DTYPES[dtype], prop_attn)
        images = torch.empty(8, 3, 224, 224, device="cuda", dtype=DTYPES[dtype])
        for mode in ("eval", "train"):
            model.train(mode == "train")
            step = (
                train if mode == "train" else torch.no_grad()(lambda model, images: model(images))
            )

            def call(
                model: Any = model, images: Any = images, step: Any = step, name: str = name
            ) -> None:
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "autocast"):
                    step(model, images)

            call()
            with Devices() as devices:
                call()
            bad = ("WAIT", "COPY HtoD", "COPY DtoH", "COPY sync")
            lines = log.record(call)
            found[f"{name}, {mode}"] = {
                "host": [line for line in lines if line.startswith(bad)],
                "elsewhere": devices.found,
                "calls": devices.calls,
                "launches": sum(line.startswith("LAUNCH") for line in lines),
            }
    return found


def captured(log: Log) -> list[str]:
    """Return the lines of capturing a CUDA graph of a forward."""
    model = build(torch.bfloat16, True)
    images = torch.empty(2, 3, 224, 224, device="cuda", dtype=torch.bfloat16)

    def capture() -> None:
        with torch.no_grad(), torch.cuda.graph(torch.cuda.CUDAGraph()):
            model(images)

    with torch.no_grad():
        model(images)
    return log.record(capture)


def streams() -> dict[str, Any]:
    """Return how many constants each of two streams has after a forward on each, and how many they share."""
    CONSTANTS.clear()
    ROWS.clear()
    model = build(torch.bfloat16, True)
    images = torch.empty(2, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    storages = []
    for _ in range(2):
        before = {id(held) for cache in (CONSTANTS, ROWS) for held, _ in cache._held.values()}
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            model(images)
        entries = [held for cache in (CONSTANTS, ROWS) for held, _ in cache._held.values()]
        storages.append([held for held in entries if id(held) not in before])
    pointers = [
        {tensor.data_ptr() for tensor in tree_leaves(held) if torch.is_tensor(tensor)}
        for held in storages
    ]
    return {"each": [len(one) for one in pointers], "shared": len(pointers[0] & pointers[1])}


def deterministic() -> str:
    """Train in deterministic mode; it raises if an operation has no deterministic form."""
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        for dtype, prop_attn in (("bfloat16", True), ("float32", "column")):
            model = build(DTYPES[dtype], prop_attn).train()
            train(model, torch.empty(2, 3, 224, 224, device="cuda", dtype=DTYPES[dtype]))
    finally:
        torch.use_deterministic_algorithms(False)
    return "done"


def demangled(found: dict[str, Any]) -> dict[str, Any]:
    """Return ``found`` with readable names of kernels."""
    names = sorted(
        {line for cells in found.values() for model in cells for block in model for line in block}
    )
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["c++filt"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    readable = dict(zip(names, done.stdout.splitlines(), strict=True))
    return {
        name: [[[readable[line] for line in block] for block in model] for model in cells]
        for name, cells in found.items()
    }


def log_triton(log: Log) -> None:
    """Log the launches of Triton kernels instead of compiling and running them."""
    from triton.runtime.jit import JITFunction

    def run(kernel: Any, *arguments: Any, **settings: Any) -> None:
        log.mark(f"triton {kernel.fn.__name__}")

    JITFunction.run = run


def main() -> None:
    warnings.simplefilter("ignore")
    torch.backends.cudnn.enabled = False  # the stand-in has no cuDNN
    torch.backends.cuda.enable_cudnn_sdp(False)
    log = Log()
    if "--fused" in sys.argv:
        log_triton(log)
        print(json.dumps({"launches": demangled(launches(log)), "passes": passes(log)}))
        return
    with contextlib.redirect_stdout(sys.stderr):
        found = {
            "torch": torch.__version__,
            "launches": demangled(launches(log)),
            "passes": passes(log),
            "captured": captured(log),
            "streams": streams(),
            "deterministic": deterministic(),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
