"""Where a model runs and in which precision, in the words of either framework."""

from __future__ import annotations

import contextlib
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.evaluation.distributed import local_rank
from tomecore.frameworks import framework_of

__all__ = ["autocast", "put_on"]

_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


def put_on(model: Any, device: str | None = None) -> str:
    """Move a model to a device, and say which one it is.

    Args:
        model: of either framework; changed in place.
        device: "cpu"; "cuda" or "gpu", with or without ":0"; any other device of the framework; None:
            the GPU if the framework has one, else the CPU. Without a number, each process of a machine
            takes the one of its own number.

    Raises:
        ArgumentValueError: the framework has no such device here.
    """
    framework = framework_of(model)
    if framework == "torch":
        import torch

        have = torch.cuda.is_available()
        kind, gpu = "torch", "cuda"
    else:
        import paddle

        have = bool(paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count())
        kind, gpu = "paddle", "gpu"
    wanted = device or (gpu if have else "cpu")
    name, colon, number = wanted.partition(":")
    if name in ("cuda", "gpu"):
        if not have:
            raise ArgumentValueError(
                f"`device` is {device!r}, but {kind} finds no GPU here; allowed is cpu, or install a "
                f"build of {kind} for GPUs"
            )
        wanted = f"{gpu}:{number if colon else local_rank(framework)}"
    try:
        if framework == "torch":
            model.to(torch.device(wanted))
            if wanted.startswith("cuda"):
                torch.cuda.set_device(wanted)
        else:
            paddle.set_device(wanted)
            model.to(device=wanted)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentValueError(
            f"`device` is {device!r}, which {kind} cannot use ({reason}); allowed are cpu, cuda and "
            "gpu, with a number as in cuda:0"
        ) from error
    return wanted


def autocast(model: Any, precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """Run a torch model in bfloat16 or float16 where autocast does; None leaves it as it is.

    Raises:
        ArgumentValueError: another precision, or a model of Paddle.
    """
    if precision is None:
        return contextlib.nullcontext()
    if precision not in _PRECISIONS:
        raise ArgumentValueError(f"`amp` must be bf16, fp16 or None; got {precision!r}")
    if framework_of(model) != "torch":
        raise ArgumentValueError(
            "`amp` is for torch models; convert the weights of a Paddle model instead"
        )
    import torch

    device = next(iter(model.parameters())).device.type
    return torch.autocast(device, dtype=getattr(torch, _PRECISIONS[precision]))
