"""For a machine with a GPU and PyTorch: does merging compute the right numbers there, and how fast is it?

    python benchmarks/gpu.py --out results --seconds 480    # a run that was cut: --skip results/gpu.jsonl

It needs torch, timm, numpy, array-api-compat and tomecore. Each result is a line of results/gpu.jsonl, on the
disk before the next begins: "done", "skipped" with the reason, or "FAILED" with the end of the traceback.
Exit status 1 if anything failed. ``--device cpu --tiny`` runs what a CPU can, on models whose speed says
nothing. cuDNN's attention is off except where it is the subject: it plans for each number of tokens, which
takes seconds. The checks are in gpu_checks.py, the measurements in gpu_speed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distributions
from itertools import product
from pathlib import Path

# Deterministic algorithms need the first; without compiled kernels a CPU runs what a GPU runs.
os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOMECORE_KERNELS": "0"}

import gpu_checks as checks
import gpu_speed as speed
import torch
from gpu_checks import BF16, F16, F32, F64, Device, Found
from gpu_speed import CUDNN, EFFICIENT, FLASH, MATH

from tomecore import __version__

#: model, batch, r and settings, the most useful first; what is compiled has four blocks
CELLS = """B 256 16, B 256 8, B 256 16:-1, L 256 8, S 256 16, B 256 16 dtype=float16, B 64 16 dtype=float32,
L 64 23 side=384, B 1 16, B 8 16, B 32 16, B 64 16, B 128 16, S 1 16, S 64 16, S 1024 16, B 128 16 autocast=1,
B 64 16 train=1, B 1 16 graph=1, B 8 16 graph=1, B 256 16 mode=compile, B 1 16 mode=cudagraphs,
B 8 16 mode=cudagraphs, B 256 16 cudnn=1"""
#: model, batch and side of each merge that is timed by itself
MERGES = (("B", 256, 224), ("B", 1, 224), ("S", 256, 224), ("L", 256, 224), ("L", 64, 384))


@dataclass(frozen=True)
class Item:
    """One check or measurement.

    Args:
        name: as it is called in the results.
        seconds: that it may take; it is skipped where fewer are left.
        call: returns what it found, and raises where that is wrong.
        needs_gpu: whether it means anything on a GPU only.
    """

    name: str
    seconds: int
    call: Callable[[], Found]
    needs_gpu: bool = False


def items(device: Device) -> Iterator[Item]:
    """Everything, in order: what the machine is, the checks, and the measurements by their value."""
    yield Item("machine", 0, partial(machine, device))
    yield Item("ceilings", 10, partial(speed.ceilings, device), True)
    yield Item("check golden numbers", 5, partial(checks.golden, device))
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
    """What the numbers depend on."""
    where = Path(__file__).parent
    driver = "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
    versions = {
        one.name: one.version
        for one in distributions()
        if one.name in {"torch", "timm", "triton", "numpy"}
    }
    return {
        "device": torch.cuda.get_device_name() if device.gpu else "cpu",
        "driver": output(*driver),
        "commit": output("git", "-C", str(where), "rev-parse", "HEAD"),
        "cudnn": torch.backends.cudnn.version(),
        "tomecore": __version__,
        **versions,
    }


def output(*command: str) -> str | None:
    """What a command prints, or None where there is no such command or it fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def run(item: Item) -> Found:
    """Run an item; return its line of the results. What it switched on is off afterwards."""
    start = time.monotonic()
    try:
        with torch.no_grad():
            line = {"name": item.name, "status": "done", **item.call()}
    except Exception as error:
        last = traceback.format_exc().splitlines()[-6:]
        line = {"name": item.name, "status": "FAILED", "traceback": last}
        if speed.has_no_kernel(error):
            line = {"name": item.name, "status": "skipped", "why": f"torch has none: {error}"}
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_initialized():
        torch.cuda.set_sync_debug_mode("default")
    torch.compiler.reset()
    return line | {"seconds": round(time.monotonic() - start, 1)}


def shown(line: Found) -> str:
    """A line of the results as a person reads it."""
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


def read(path: Path) -> dict[str, Found]:
    """The results of an earlier run by name, without those it skipped and without a half-written line."""
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("}\n")]
    return {line["name"]: line for line in map(json.loads, whole) if line["status"] != "skipped"}


def reason_to_skip(item: Item, device: Device, left: float) -> str | None:
    """Why an item does not run, if it does not."""
    if item.needs_gpu and not device.gpu:
        return "needs a GPU"
    if item.name != "machine" and left < item.seconds:
        return f"needs {item.seconds} s, and {max(0, left):.0f} are left"
    return None


def main(argv: list[str] | None = None) -> int:
    """Run everything that fits; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=480, help="what needs more is skipped")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="so small that speed says nothing")
    parser.add_argument("--skip", type=Path, help="results that are kept, not measured again")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names: only these, again")
    given = parser.parse_args(argv)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; without one: --device cpu --tiny")
    deadline, device = time.monotonic() + given.seconds, Device(given.device, given.tiny)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False
    lines = read(given.skip) if given.skip else {}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "gpu.jsonl"
    kept = path.with_suffix(".kept")
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    kept.replace(path)
    with path.open("a") as file:
        for item in items(device):
            wanted = item.name == "machine" or (
                any(part in item.name for part in given.only)
                if given.only
                else item.name not in lines
            )
            if not wanted:
                continue
            why = reason_to_skip(item, device, deadline - time.monotonic())
            line = {"name": item.name, "status": "skipped", "why": why} if why else run(item)
            lines[item.name] = line
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(shown(line), flush=True)
            device.wait()  # raises if the device is lost, and with it all that would follow
    print("\nsummary:", *map(shown, lines.values()), sep="\n")
    return int(any(line["status"] == "FAILED" for line in lines.values()))


if __name__ == "__main__":
    sys.exit(main())
