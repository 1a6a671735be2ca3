"""Proportional attention (ToMe, eq. 1), softmax(q k^T / sqrt(d) + log s) v, in all its forms.

    python benchmarks/attention_forms.py --dtype float32 bfloat16 --threads 1 --json forms.json
    python benchmarks/attention_forms.py --device cuda --dtype float16 bfloat16 --json forms-gpu.json
    python benchmarks/attention_forms.py --show benchmarks/results/attention-forms-cpu.json

Each form takes turns with the fused kernel without sizes, which the unpatched model runs; numbers are
relative to it. Queries, keys and values are views of one projection, as in the libraries, and the time of a
form includes what it computes from the sizes. On a GPU the forms also run on each fused kernel separately;
the results say which kernel ran, and which ones refused. tests/tools/test_attention_forms.py checks that all
forms give one result.

key bias      the fused kernel with log s as its mask, as in the adapters
products      two products and a softmax, as in the adapters in bfloat16 on a CPU
key column    a column sqrt(d) of the queries and a column log s of the keys, so that the kernel needs no
              mask, as in the adapters with prop_attn="column"
value column  sum exp(q k) s v / sum exp(q k) s: sizes in the values (s v | s), and a division; no mask either
Both columns widen queries, keys and values, which are padded to the multiple of eight that kernels need.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function

from tomecore.adapters.hosts.torch_attention import append_column, attention_by_column
from tomecore.benchmark import interleave, median_ratio, quartiles

HEADS, TOKENS, BATCHES, WIDTH = (3, 6, 12), (25, 50, 101, 197, 389, 577), (1, 8), 64
FEW = 2**15  # number of scores below which the overhead of calls dominates
#: fused kernels of a GPU
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)

# Forms: q, k, v (B, H, N, d) and sizes (B, N) float32 (of float64: float64) -> (B, H, N, d).


def plain(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """Return attention without the sizes, with which the others are compared."""
    return F.scaled_dot_product_attention(q, k, v)


def key_bias(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    bias = sizes.log().to(q.dtype)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def products(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """Compute in any dtype what ``tomecore.adapters.torch`` computes in bfloat16; a test compares both."""
    batch, heads, tokens, width = q.shape
    bias = sizes.log().to(q.dtype)[:, None, None, :]
    rows = bias.expand(batch, heads, 1, tokens).reshape(-1, 1, tokens)
    q, k, v = (t.reshape(batch * heads, tokens, width) for t in (q, k, v))
    scores = torch.baddbmm(rows, q, k.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v).view(batch, heads, tokens, width)


def key_column(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    return attention_by_column(q, k, v, sizes.log().to(q.dtype)[:, None, None, :])


def value_column(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    width = q.shape[-1]
    shares = (sizes / sizes.amax(1, keepdim=True)).to(v.dtype)  # s v itself overflows in float16
    shares, none = shares[:, None, :, None], q.new_zeros(())
    q, k, v = append_column(q, none), append_column(k, none), append_column(v * shares, shares)
    sums = F.scaled_dot_product_attention(q, k, v, scale=width**-0.5)
    return sums[..., :width] / sums[..., width : width + 1]


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    form.__name__.replace("_", " "): form
    for form in (plain, key_bias, products, key_column, value_column)
}


def reference(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor) -> Tensor:
    """Return attention in float64, by the equation."""
    q, k, v, sizes = (t.double() for t in (q, k, v, sizes))
    scores = q @ k.mT / q.shape[-1] ** 0.5 + sizes.log()[:, None, None, :]
    return scores.softmax(-1) @ v


def inputs(batch: int, heads: int, tokens: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return q, k, v (B, H, N, 64), views of one tensor, and sizes (B, N) from 1 to 8."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, heads, WIDTH, generator=generator)
    sizes = torch.randint(1, 9, (batch, tokens), generator=generator)
    q, k, v = qkv.to(device, dtype).permute(2, 0, 3, 1, 4).unbind(0)
    return [q, k, v, sizes.to(device, torch.promote_types(dtype, torch.float32))]


Call = Callable[[int], Tensor]


def call(
    form: Callable[..., Tensor], kernel: SDPBackend | None, given: list[Tensor], repeat: int
) -> Tensor:
    with contextlib.nullcontext() if kernel is None else sdpa_kernel(kernel):
        for _ in range(repeat):
            out = form(*given)
    return out


def calls_of(
    given: list[Tensor], kernels: Sequence[SDPBackend]
) -> tuple[dict[str, Call], dict[str, str]]:
    """Return name -> call(repetitions) of the forms to time, and the reasons why the others cannot run."""
    tried: list[Any] = [(name, form, None) for name, form in FORMS.items()]
    for kernel, (name, form) in product(kernels, FORMS.items()):
        if form is not products:
            tried.append((f"{name} ({kernel.name.partition('_')[0].lower()})", form, kernel))
    found, refused = {}, {}
    for name, form, kernel in tried:
        run = functools.partial(call, form, kernel, given)
        try:
            run(1)
        except RuntimeError as error:
            refused[name] = str(error).strip().splitlines()[0]
        else:
            found[name] = run
    return found, refused


def kernels_used(calls: dict[str, Call]) -> dict[str, str]:
    """Return the kernel of each call; "" if it used none."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for name, run in calls.items():
            with record_function(name):
                run(1)
    found, current, start = dict.fromkeys(calls, ""), "", "aten::_scaled_dot_product_"
    for event in sorted(recorded.events(), key=lambda event: event.time_range.start):
        if event.name in calls:
            current = event.name
        elif current and event.name.startswith(start):
            found[current] = found[current] or event.name.removeprefix(start)
    return found


@torch.inference_mode()
def measure(
    batch: int, heads: int, tokens: int, dtype: str, device: str, rounds: int
) -> dict[str, Any]:
    """Measure one shape: milliseconds, time relative to plain, error to float64, and kernel of each form."""
    given = inputs(batch, heads, tokens, getattr(torch, dtype), device)
    wait = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    calls, refused = calls_of(given, () if device == "cpu" else KERNELS)
    (once,) = interleave({"plain": functools.partial(calls["plain"], 1)}, 1, wait=wait)
    repeat = max(1, min(100, round(0.002 / once["plain"])))  # two milliseconds, or one call
    timed = {name: functools.partial(run, repeat) for name, run in calls.items()}
    seconds = list(interleave(timed, rounds, wait=wait))
    exact, relative, error = reference(*given), {}, {}
    for name, run in calls.items():
        low, high = quartiles(seconds, name, "plain")
        relative[name] = [round(n, 4) for n in (low, median_ratio(seconds, name, "plain"), high)]
        if not name.startswith("plain"):
            wrong = (run(1).double() - exact).abs().max() / exact.abs().max()
            error[name] = float(f"{wrong:.2e}")
    took = {name: statistics.median(one[name] for one in seconds) for name in timed}
    return {
        **{"dtype": dtype, "batch": batch, "heads": heads, "tokens": tokens, "rounds": rounds},
        "milliseconds": {name: float(f"{one / repeat * 1e3:.4g}") for name, one in took.items()},
        "relative": relative,
        "error": error,
        "kernel": kernels_used(calls),
        "refused": refused,
    }


def line(cell: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {cell['relative'][name][1]:.2f}" for name in cell["error"])
    return (
        f"{cell['dtype']:8s} {cell['batch']:3d} x {cell['heads']:2d} x {cell['tokens']:3d}  "
        f"{cell['milliseconds']['plain']:9.3f} ms  {times}"
    )


def summary(cells: list[dict[str, Any]]) -> str:
    """Return minimum, maximum and median over the shapes, by dtype, form, and few or many scores."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        few = cell["batch"] * cell["heads"] * cell["tokens"] ** 2 < FEW
        kinds.setdefault((cell["dtype"], "below" if few else "from"), []).append(cell)
    lines = []
    for (dtype, many), own in kinds.items():
        for name in dict.fromkeys(name for cell in own for name in cell["error"]):
            found = [cell["relative"][name][1] for cell in own if name in cell["relative"]]
            wrong = max(cell["error"][name] for cell in own if name in cell["error"])
            spread = f"{min(found):.2f}-{max(found):.2f}, median {statistics.median(found):.2f}"
            lines.append(
                f"{dtype:8s} {many:5s} {FEW} scores  {name:24s} {spread}, {len(found)} shapes; "
                f"error at most {wrong:.1e}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="several")
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="only these")
    parser.add_argument("--json", type=Path, help="keep the numbers in this file")
    parser.add_argument("--note", default="", help="remarks on the machine, for the file")
    parser.add_argument("--show", type=Path, help="print this file and measure nothing")
    args = parser.parse_args(arguments)
    if args.show:
        cells = json.loads(args.show.read_text())["cells"]
        print("\n".join([*map(line, cells), summary(cells)]))
        return
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # what the file records about the machine
        torch.set_num_threads(args.threads)
    cells = []
    for dtype, batch, heads, tokens in product(args.dtype, BATCHES, HEADS, args.tokens):
        cells.append(measure(batch, heads, tokens, dtype, args.device, args.rounds))
        print(line(cells[-1]), flush=True)
    print(summary(cells))
    if args.json:
        from tomecore.benchmark import machine

        found = {"machine": machine(), "note": args.note, "device": args.device, "cells": cells}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
