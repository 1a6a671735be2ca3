"""For a machine with a GPU and Paddle: does merging compute the right numbers there, and how fast is it?

    python benchmarks/paddle_gpu.py --json result.json

Nothing but Paddle and tomecore is needed. It checks a patched ViT on the device against the same model on the
CPU (float32), in half precision, and as a static graph, twice for determinism; then it times the unpatched
model, the patched one and free-drop (the same model whose blocks drop tokens: the limit of the machine) in
turn. Without a GPU it runs on the CPU, where half precision has no kernels and is left out. Exit status 1 if
a check fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

import tomecore.adapters.paddle as tome
from tomecore import __version__, benchmark
from tomecore.models.paddle import VisionTransformer

SIZES = {
    "tiny": {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
    "vit_s": {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_b": {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_l": {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
}
#: Largest difference allowed, relative to the largest output, where the decisions agree.
LIMITS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


def build(name: str, weights: dict[str, Any] | None = None) -> VisionTransformer:
    model = VisionTransformer(class_num=1000, qkv_bias=True, **SIZES[name])
    if weights is not None:
        model.set_state_dict(weights)
    model.eval()
    return model


def ran(model: Any, x: Any) -> dict[str, Any]:
    """Output, sizes and source of a forward pass, as numpy in float32."""
    with paddle.no_grad():
        output = model(x)
    return {
        "output": output.astype("float32").numpy(),
        "sizes": model.tome.sizes.numpy(),
        "source": model.tome.source.numpy(),
    }


def compare(got: dict[str, Any], expected: dict[str, Any], limit: float) -> dict[str, Any]:
    """Images whose every decision agrees are compared; the others are counted: near-ties do flip."""
    alike = (got["source"] == expected["source"]).all(axis=1)
    scale = float(np.abs(expected["output"]).max())
    tokens = expected["source"].shape[1]
    found: dict[str, Any] = {
        "finite": bool(np.isfinite(got["output"]).all()),
        "sizes_sum_to_tokens": bool((got["sizes"].sum(axis=1) == tokens).all()),
        "images_alike": f"{int(alike.sum())}/{len(alike)}",
        "difference": None,
        "limit": limit,
    }
    if alike.any():
        difference = np.abs(got["output"] - expected["output"])[alike].max() / scale
        found["difference"] = float(difference)
    found["passed"] = (
        found["finite"]
        and found["sizes_sum_to_tokens"]
        and (found["difference"] is None or found["difference"] <= limit)
    )
    return found


def checks(name: str, batch: int, r: Any, device: str, halves: list[str]) -> dict[str, Any]:
    """Every check by name."""
    size = SIZES[name]["img_size"]
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype("float32")
    paddle.set_device("cpu")
    reference = tome.apply_patch(build(name), r=r, trace_source=True)
    weights = reference.state_dict()
    expected = ran(reference, paddle.to_tensor(images))
    paddle.set_device(device)
    found = {}

    def patched(dtype: str) -> Any:
        model = tome.apply_patch(build(name, weights), r=r, trace_source=True)
        return model if dtype == "float32" else model.to(dtype=dtype)

    for dtype in ["float32", *halves]:
        model, x = patched(dtype), paddle.to_tensor(images).astype(dtype)
        got = ran(model, x)
        found[f"{dtype} as on the CPU"] = compare(got, expected, LIMITS[dtype])
        again = ran(model, x)
        same = all(np.array_equal(again[key], got[key]) for key in got)
        found[f"{dtype} twice the same bits"] = {"passed": True, "same": same}  # for information
    model, x = patched("float32"), paddle.to_tensor(images)
    dygraph = ran(model, x)["output"]
    spec = [paddle.static.InputSpec([None, 3, size, size], "float32")]
    program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    with paddle.no_grad():
        difference = np.abs(program(x).numpy() - dygraph).max() / np.abs(dygraph).max()
    found["static graph as dygraph"] = {
        "difference": float(difference),
        "limit": 1e-3,
        "passed": bool(difference <= 1e-3),
    }
    model = patched("float32")
    model.train()
    model(x).square().mean().backward()
    finite = all(bool(paddle.isfinite(p.grad).all()) for p in model.parameters())
    found["gradients are finite"] = {"passed": finite}
    return found


def times(name: str, batch: int, r: Any, dtype: str, rounds: int, gpu: bool) -> dict[str, Any]:
    """Unpatched, merging and dropping in turn, and the ratios within each round."""
    size = SIZES[name]["img_size"]
    unpatched = build(name).to(dtype=dtype)
    merging = tome.apply_patch(build(name).to(dtype=dtype), r=r)
    dropping = benchmark.free_drop(tome.apply_patch(build(name).to(dtype=dtype), r=r))
    x = paddle.randn([batch, 3, size, size]).astype(dtype)

    def timed(model: Any) -> Callable[[], None]:
        def call() -> None:
            model(x)
            if gpu:
                paddle.device.synchronize()

        return call

    calls = {
        "unpatched": timed(unpatched),
        "merging": timed(merging),
        "dropping": timed(dropping),
    }
    with paddle.no_grad():
        found = list(benchmark.interleave(calls, rounds))[rounds // 4 :]
    tokens = unpatched.patch_embed.num_patches + 1
    return {
        "model": name,
        "batch": batch,
        "r": r,
        "dtype": dtype,
        "rounds": len(found),
        "images_per_second": {
            call: batch / statistics.median(seconds[call] for seconds in found) for call in calls
        },
        "speedup": benchmark.median_ratio(found, "unpatched", "merging"),
        "limit": merging.tome.arithmetic.limit(tokens, r),
        "free_drop_share": benchmark.median_ratio(found, "dropping", "merging"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="gpu:0, cpu ...; a GPU if there is one")
    parser.add_argument("--models", nargs="+", default=["vit_s", "vit_b"], choices=SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--r", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(argv)
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = arguments.device or ("gpu:0" if has_gpu else "cpu")
    gpu = device.startswith("gpu")
    halves = ["float16", "bfloat16"] if gpu else []  # a CPU has no kernels for them
    paddle.seed(0)
    checked = checks(arguments.models[0], 4, arguments.r[-1], device, halves)
    for name, found in checked.items():
        print(f"{'ok  ' if found['passed'] else 'FAIL'} {name}: {found}", flush=True)
    cells = []
    for name in arguments.models:
        for batch in arguments.batches:
            for r in arguments.r:
                for dtype in ["float32", *halves]:
                    cell = times(name, batch, r, dtype, arguments.rounds, gpu)
                    cells.append(cell)
                    print(
                        f"{name:6s} batch {batch:4d} r {r:3d} {dtype:9s} {cell['speedup']:5.2f}x"
                        f" of {cell['limit']:5.2f}x, {cell['free_drop_share']:6.1%} of free-drop",
                        flush=True,
                    )
    if arguments.json:
        machine = {
            "device": device,
            "name": paddle.device.cuda.get_device_name() if gpu else "cpu",
            "paddle": paddle.__version__,
            "tomecore": __version__,
        }
        result = {"machine": machine, "checks": checked, "cells": cells}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(found["passed"] for found in checked.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
