"""The measurements of ``gpu.py``: the speed of merging on this device, and the kernels it launches."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from gpu_checks import BF16, Device, Found, Graphed
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import tomecore.adapters.torch as tome
from tomecore.adapters.engine.patch import config_of
from tomecore.backends.kernels.cuda import torch as fused
from tomecore.benchmark import interleave, measure
from tomecore.loading import Loaded
from tomecore.loading.images import Preprocess

FLASH, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
CUDNN, MATH = SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH
#: torch's message if it has no kernel for the arguments on this device
NO_KERNEL = ("No available kernel", "No viable backend")


def has_no_kernel(error: BaseException) -> bool:
    return any(text in str(error) for text in NO_KERNEL)


def best_microseconds(device: Device, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the best time of each call, in microseconds."""
    rounds = list(interleave(calls, 9, wait=device.wait, repeat=1 if device.tiny else 20))
    return {name: 1e6 * min(one[name] for one in rounds) for name in calls}


def kernels(device: Device, call: Callable[[], Any]) -> list[tuple[str, int, int]]:
    """Return the kernels and copies of one call as (name, count, microseconds), longest first."""
    if not device.gpu:
        return []
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        call()
        device.wait()
    events = [one for one in recorded.key_averages() if one.device_type.name == "CUDA"]
    found = [(one.key[:90], one.count, round(one.self_device_time_total)) for one in events]
    return sorted(found, key=lambda kernel: -kernel[2])


def by_calls(call: Callable[[], Any]) -> Any:
    """Return what a call computes without the Triton kernels."""
    devices = set(fused.DEVICES)
    fused.DEVICES.clear()
    try:
        return call()
    finally:
        fused.DEVICES.update(devices)


def ceilings(device: Device) -> Found:
    """Measure the limits of the device: a copy in GB/s, matrix products in TFLOP/s."""
    big, small, into = (torch.randn(n, n, device=device.name) for n in (2**15, 2**12, 2**15))
    half = big[: 2**13, : 2**13].to(BF16)
    took = best_microseconds(
        device,
        {
            "copy": lambda: into.copy_(big),
            "bf16": lambda: half @ half,
            "f32": lambda: small @ small,
        },
    )
    speeds = {"bf16": 2e-6 * 2**39 / took["bf16"], "f32": 2e-6 * 2**36 / took["f32"]}
    return {"copy": 2e-3 * big.nbytes / took["copy"], **speeds}


def merge(device: Device, name: str, batch: int, side: int) -> Found:
    """Measure one merge, from keys to tokens: microseconds, launches, and the bytes of a single pass."""
    model, given = device.pair(BF16, name, 2, side)[1], []
    settings = config_of(model)
    reduction = settings.reduce

    def noted(*args: Any) -> Any:
        given.append(args)
        return reduction(*args)

    settings.reduce = noted
    model(device.images(batch, BF16, side))
    _, _, x, keys, *_ = given[1]  # the tokens of the second block have sizes
    call = partial(reduction, *given[1])
    floor = sum(array.nbytes for array in (x, keys[0], call()[0]))
    launches = sum(count for _, count, _ in kernels(device, call))
    forms = {"microseconds": call, "microseconds_by_calls": partial(by_calls, call)}
    took = best_microseconds(device, forms)
    speed = 1e-3 * floor / took["microseconds"]
    return {**took, "bytes_at_least": floor, "gb_per_second": speed, "launches": launches}


def attention(device: Device, tokens: int) -> Found:
    """Measure attention without sizes, with a mask and with a key column: microseconds by kernel."""
    batch, heads, width = (2, 2, 16) if device.tiny else (64, 12, 64)
    shape = (batch, heads, tokens, width)
    q, k, v = (torch.randn(shape, device=device.name, dtype=BF16) for _ in range(3))
    mask = torch.zeros(batch, 1, 1, tokens, device=device.name, dtype=BF16)
    wide = [nn.functional.pad(array, (0, 8)) for array in (q, k, v)]
    attend = nn.functional.scaled_dot_product_attention
    forms: dict[str, Callable[[], Any]] = {
        "plain": lambda: attend(q, k, v),
        "mask": lambda: attend(q, k, v, mask),
        "column": lambda: attend(*wide, scale=width**-0.5),
    }
    found: Found = {}
    for (name, kernel), form in product(
        {"flash": FLASH, "efficient": EFFICIENT, "cudnn": CUDNN, "math": MATH}.items(), forms
    ):
        try:
            with sdpa_kernel(kernel):
                took = best_microseconds(device, {form: forms[form]})[form]
        except RuntimeError as error:
            if not has_no_kernel(error):
                raise
            took = None
        found[f"{name} {form}"] = took
    return found


def table(device: Device) -> Found:
    """Return the 20 kernels of two merging blocks that take the longest."""
    model, x = device.pair(BF16, "B", 2)[1], device.images(256, BF16)
    return {"kernels": kernels(device, partial(model, x))[:20]}


def cell(device: Device, name: str, batch: int, r: Any, how: dict[str, str]) -> Found:
    """Time all forms of a model in turn, after measuring the seconds of each first call.

    Args:
        device: where it runs.
        name: of the model, "S", "B" or "L".
        batch: images per call.
        r: the schedule.
        how: ``dtype``, ``side`` in pixels, ``mode`` of compiling, and flags: ``autocast``, ``train``,
            ``graph`` (two more forms as CUDA graphs) and ``cudnn`` (use its attention first).
    """
    dtype = how.get("dtype", "float32" if "autocast" in how else "bfloat16")
    depth, side = 4 if "mode" in how else 24 if name == "L" else 12, int(how.get("side", 224))
    batch, r, depth, rounds = (2, 4, 3, 2) if device.tiny else (batch, r, depth, 12)
    plain, _ = device.pair(getattr(torch, dtype), name, depth, side)
    x, first = device.images(batch, getattr(torch, dtype), side), []
    patch = partial(tome.apply_patch, r=r)
    others: Found = {} if "mode" in how else {"column": partial(patch, prop_attn="column")}
    if "graph" in how:
        others |= {"graph": Graphed, "merging graph": lambda model: Graphed(patch(model))}
    context: Any = torch.autocast(device.name, BF16, enabled="autocast" in how)
    if "cudnn" in how:
        context = sdpa_kernel([CUDNN, EFFICIENT], set_priority=True)
    with context:
        for model in (plain, patch(copy.deepcopy(plain))):
            start = time.perf_counter()
            model(x)
            device.wait()
            first.append(time.perf_counter() - start)
        with torch.enable_grad():
            found = measure(
                Loaded(name, plain.eval(), Preprocess(tuple(x.shape[2:]))),
                r,
                batch=batch,
                dtype=dtype,
                device=device.name,
                mode=how.get("mode", "eager"),
                train="train" in how,
                rounds=rounds,
                repeat=max(1, min(16, 32 // batch)),
                others=others,
            )
    return found.as_dict() | {"first_seconds": first}
