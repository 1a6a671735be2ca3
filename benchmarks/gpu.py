"""On a GPU with PyTorch: does merging compute the right numbers, and how fast is it?

    python benchmarks/gpu.py --out results --seconds 480    # after an interruption: --skip results/gpu.jsonl

It needs torch, timm, numpy, array-api-compat and tomecore. Each result is a line of results/gpu.jsonl, and is
on disk before the next item begins: "done", "skipped" with the reason, or "FAILED" with the end of the
traceback. The exit status is 1 if anything failed. ``--device cpu --tiny`` runs everything that a CPU can, on
models whose speed means nothing. cuDNN's attention is off except in its own items, because it prepares a plan
for each number of tokens, which takes seconds. The checks are in gpu_checks.py, the measurements in
gpu_speed.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import distributions
from itertools import product

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # for deterministic algorithms
if "cpu" in sys.argv:  # without compiled kernels it runs the calls that a GPU without Triton runs
    os.environ["TOMECORE_KERNELS"] = "0"

import gpu_checks as checks
import gpu_speed as speed
import torch
from gpu_checks import BF16, F16, F32, F64, Device, Found
from gpu_results import Item, attempt, commit, parser_of, run_items
from gpu_speed import CUDNN, EFFICIENT, FLASH, MATH

from tomecore import __version__

FILE = "gpu.jsonl"
#: model, batch, r and settings, the most useful first; compiled models have four blocks
CELLS = """B 256 16, B 256 8, B 256 16:-1, L 256 8, S 256 16, B 256 16 dtype=float16, B 64 16 dtype=float32,
L 64 23 side=384, B 1 16, B 8 16, B 32 16, B 64 16, B 128 16, S 1 16, S 64 16, S 1024 16, B 128 16 autocast=1,
B 64 16 train=1, B 1 16 graph=1, B 8 16 graph=1, B 256 16 mode=compile, B 1 16 mode=cudagraphs,
B 8 16 mode=cudagraphs, B 256 16 cudnn=1"""
#: model, batch and side of each merge that is timed by itself
MERGES = (("B", 256, 224), ("B", 1, 224), ("S", 256, 224), ("L", 256, 224), ("L", 64, 384))


def items(device: Device) -> Iterator[Item]:
    """Return everything, in order: the machine, the checks, and the measurements, the most useful first."""
    yield Item("machine", 0, partial(machine, device))
    yield Item("ceilings", 10, partial(speed.ceilings, device), True)
    yield Item("check golden numbers", 5, partial(checks.golden, device))
    yield Item("check fused kernels", 20, partial(checks.fused_kernels, device), True)
    for dtype in (F64, F32, BF16, F16):
        yield Item(f"check {str(dtype)[6:]}", 10, partial(checks.numbers, device, dtype))
    for half in (BF16, F16):
        name = f"check autocast {str(half)[6:]}"
        yield Item(name, 10, partial(checks.numbers, device, F32, half))
    for backend, form in product((FLASH, EFFICIENT, CUDNN, MATH), (True, "column")):
        name = f"check {backend.name} {'mask' if form is True else form}"
        call = partial(checks.numbers, device, F16, backend=backend, prop_attn=form)
        yield Item(name, 10, call)
    yield Item("check mask dtypes", 5, partial(checks.mask_dtypes, device))
    yield Item("check deterministic", 15, partial(checks.deterministic, device))
    yield Item("twice by default", 5, partial(checks.again, device, "highest"))
    yield Item("twice with TF32", 5, partial(checks.again, device, "high"), True)
    yield Item("gradients by cuDNN", 10, partial(checks.cudnn_gradients, device), True)
    call = partial(checks.another_form, device, checks.Graphed, 4, 4)
    yield Item("check graph", 5, call, True)
    compiled = partial(torch.compile, fullgraph=True, backend="inductor" if device.gpu else "eager")
    yield Item("check compiled", 60, partial(checks.another_form, device, compiled, 4, 6))
    yield Item("check streams", 5, partial(checks.streams, device), True)
    yield Item("check no waits", 5, partial(checks.no_waits, device), True)
    yield Item("check memory", 5, partial(checks.memory, device), True)
    for merge in MERGES:
        yield Item("merge {} {} {}".format(*merge), 8, partial(speed.merge, device, *merge))
    for title in CELLS.replace("\n", " ").split(", "):
        name, batch, r, *rest = title.split()
        how = dict(one.split("=") for one in rest)
        schedule = tuple(map(int, r.split(":"))) if ":" in r else int(r)
        yield Item(
            title,
            60 if "mode" in how else 12,
            partial(speed.cell, device, name, int(batch), schedule, how),
            bool({"graph", "cudnn", "mode"} & how.keys()),
        )
    for tokens in (197, 101, 577):
        yield Item(f"attention {tokens}", 10, partial(speed.attention, device, tokens))
    yield Item("kernels", 10, partial(speed.table, device), True)


def machine(device: Device) -> Found:
    """Return the properties of the machine on which the numbers depend."""
    versions = {
        one.name: one.version
        for one in distributions()
        if one.name in {"torch", "timm", "triton", "numpy"}
    }
    return {
        "device": torch.cuda.get_device_name() if device.gpu else "cpu",
        **commit(),
        "cudnn": torch.backends.cudnn.version(),
        "tomecore": __version__,
        **versions,
    }


def run(item: Item) -> Found:
    """Run an item and return its line of the results. Settings that it changed are reset afterwards."""
    with torch.no_grad():
        line = attempt(item, why_skipped)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_initialized():
        torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()
    return line


def why_skipped(error: BaseException) -> str | None:
    """Return why an error is not a failure; None if it is a failure."""
    return f"torch has none: {error}" if speed.has_no_kernel(error) else None


def shown(line: Found) -> str:
    """Return a line of the results in readable form."""
    start = f"{line['status']:8s}{line['name']:32s}"
    if "speedup" not in line:
        rest = line.get("traceback", [json.dumps({key: line[key] for key in list(line)[2:]})])
        return f"{start} {rest[-1][:190]}"
    found = f"{line['speedup']:5.2f}x, {line['limit_share']:.0%} of the limit {line['limit']:.2f}x"
    found += f", {line['drop_share']:.0%} of free-drop"
    if "column" in line["ahead"]:
        found += f", column {line['speedup'] / line['ahead']['column']:.2f}x"
    rates = line["images_per_second"]
    if "graph" in rates:
        found += f", as graphs {rates['merging graph'] / rates['graph']:.2f}x"
    mib = [(line["peak_bytes"][form] or 0) // 2**20 for form in ("unpatched", "merging")]
    first = ", ".join(f"{seconds:.2f}" for seconds in line["first_seconds"])
    return f"{start} {found}; peak {mib[0]}, {mib[1]} MiB; first call {first} s"


def main(argv: list[str] | None = None) -> int:
    """Run everything that fits; return the exit status."""
    parser = parser_of((__doc__ or "").partition("\n")[0], FILE)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; without one: --device cpu --tiny")
    device = Device(given.device, given.tiny)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False
    # If the device is lost, every later item would fail: waiting raises.
    return run_items(
        items(device), given, FILE, gpu=device.gpu, run=run, shown=shown, after=device.wait
    )


if __name__ == "__main__":
    sys.exit(main())
