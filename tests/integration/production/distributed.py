"""The code of one process of a distributed run; ``test_distributed.py`` starts two and compares.

python -m production.distributed RANK STORE MODELS ANSWERS
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tomecore.adapters.torch as tome
from tomecore.adapters.engine.spec import attribute
from tomecore.errors import UnsupportedModelError

PROCESSES = 2


def outcome(model: nn.Module, called: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """The output of one step, and the gradients of all processes' losses together."""
    model.zero_grad()
    output = called(x)
    output.square().sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            gradients[name] = PROCESSES * gradient.clone()  # both wrappers take the mean
    return {"output": output.detach(), "tokens": model.tome.tokens, "gradients": gradients}


def ddp_patched_before(model, layers, x):
    tome.apply_patch(model, r=8)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # DINOv2's mask token
    outcome(model, wrapped, x)  # later steps reuse what the first one set up
    return outcome(model, wrapped, x)


def ddp_patched_after(model, layers, x):
    wrapped = DistributedDataParallel(model)
    tome.apply_patch(wrapped.module, r=8)
    return outcome(model, wrapped, x)


def ddp_checkpointed(model, layers, x):
    tome.apply_patch(model, r=8)
    model.set_grad_checkpointing(True)
    return outcome(model, DistributedDataParallel(model), x)


def ddp_compiled(model, layers, x):
    tome.apply_patch(model, r=8)
    wrapped = DistributedDataParallel(model)
    compiled = torch.compile(wrapped, backend="aot_eager")
    output = compiled(x)
    model.zero_grad()
    compiled(x).square().sum().backward()
    named = {n: PROCESSES * p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "gradients": named}


def sharded(model, layers, **policy):
    settings = {"mesh": init_device_mesh("cpu", (PROCESSES,))}
    if policy:
        settings["mp_policy"] = MixedPrecisionPolicy(**policy)
    for block in attribute(model, layers):
        fully_shard(block, **settings)
    return fully_shard(model, **settings)


def fsdp_patched_before(model, layers, x):
    tome.apply_patch(model, r=8)
    sharded(model, layers)
    outcome(model, model, x)
    return outcome(model, model, x)


def fsdp_patched_after(model, layers, x):
    sharded(model, layers)
    tome.apply_patch(model, r=8)
    return outcome(model, model, x)


def fsdp_r_changed_and_removed(model, layers, x):
    tome.apply_patch(model, r=2)
    sharded(model, layers)
    model.r = 8
    found = outcome(model, model, x)
    try:
        tome.remove_patch(model)
    except UnsupportedModelError as error:
        found["refused"] = str(error)
    return {**found, "after": outcome(model, model, x)["output"]}


def fsdp_checkpointed(model, layers, x):
    tome.apply_patch(model, r=8)
    model.set_grad_checkpointing(True)
    sharded(model, layers)
    return outcome(model, model, x)


def fsdp_bfloat16(model, layers, x):
    tome.apply_patch(model.float(), r=8)
    sharded(model, layers, param_dtype=torch.bfloat16)
    return outcome(model, model, x.float()) | {"sizes": model.tome.sizes}


def fsdp_outputs_cast(model, layers, x):
    tome.apply_patch(model.float(), r=8)
    sharded(model, layers, param_dtype=torch.bfloat16, output_dtype=torch.float32)
    return outcome(model, model, x.float())


#: those that must equal one process, and others
SCENARIOS = {
    function.__name__: function
    for function in (
        ddp_patched_before,
        ddp_patched_after,
        ddp_checkpointed,
        ddp_compiled,
        fsdp_patched_before,
        fsdp_patched_after,
        fsdp_r_changed_and_removed,
        fsdp_checkpointed,
    )
}
OTHERS = {function.__name__: function for function in (fsdp_bfloat16, fsdp_outputs_cast)}


def main() -> None:
    rank, store, models, answers = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store, PROCESSES),
        rank=int(rank),
        world_size=PROCESSES,
    )
    results = {}
    for name, scenario, layers, x in torch.load(models, weights_only=False):
        (model,) = torch.load(f"{models}-{name}", weights_only=False)
        try:
            found = {**SCENARIOS, **OTHERS}[scenario](
                model.train(), layers, x.chunk(PROCESSES)[int(rank)]
            )
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        results[name, scenario] = found
    torch.save(results, f"{answers}{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
