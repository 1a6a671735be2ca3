"""Choose where a model runs and in which precision, with the same words for both frameworks."""

from __future__ import annotations

import contextlib
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.evaluation.distributed import local_rank
from tomecore.frameworks import runtime_of

__all__ = ["autocast", "put_on"]

_PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


def put_on(model: Any, device: str | None = None) -> str:
    """Move a model to a device, and return the name of the device.

    Args:
        model: a model of either framework; it is moved in place.
        device: "cpu"; "cuda" or "gpu", with or without ":0"; any other device of the framework; None:
            the GPU if the framework has one, else the CPU. Without a number, each process on a machine
            takes the GPU with its own number.

    Raises:
        ArgumentValueError: the framework does not have this device here.
    """
    runtime = runtime_of(model)
    have = runtime.cuda.device_count() > 0
    wanted = device or (runtime.gpu if have else "cpu")
    name, colon, number = wanted.partition(":")
    if name in ("cuda", "gpu"):
        if not have:
            raise ArgumentValueError(
                f"`device` is {device!r}, but {runtime.name} finds no GPU here; allowed is cpu, or install "
                f"a build of {runtime.name} for GPUs"
            )
        wanted = f"{runtime.gpu}:{number if colon else local_rank(runtime.name)}"
    try:
        runtime.move(model, wanted)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ArgumentValueError(
            f"`device` is {device!r}, which {runtime.name} cannot use ({reason}); allowed are cpu, cuda and "
            "gpu, with a number as in cuda:0"
        ) from error
    return wanted


def autocast(model: Any, precision: str | None) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast runs a torch model in bfloat16 or float16; None changes nothing.

    Raises:
        ArgumentValueError: the precision is another one, or the model is a Paddle model.
    """
    if precision is None:
        return contextlib.nullcontext()
    if precision not in _PRECISIONS:
        raise ArgumentValueError(f"`amp` must be bf16, fp16 or None; got {precision!r}")
    runtime = runtime_of(model)
    if runtime.name != "torch":
        raise ArgumentValueError(
            "`amp` is for torch models; convert the weights of a Paddle model instead"
        )
    torch, device = runtime.library, next(iter(model.parameters())).device.type
    context: contextlib.AbstractContextManager[Any] = torch.autocast(
        device, dtype=getattr(torch, _PRECISIONS[precision])
    )
    return context
