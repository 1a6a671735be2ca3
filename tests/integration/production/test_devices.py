"""The devices of new tensors, without a GPU: fake CUDA tensors cannot be mixed with others, or read.

If the merging forward creates a tensor on the CPU, or reads a value to decide something (on a real
GPU it would wait for everything in the queue), these tests fail.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

import tomecore.adapters.torch as tome
from production.models import images
from tomecore.adapters.engine import reduce as reduce_module


class CreatedOnCPU(TorchDispatchMode):
    """Records functions that create a tensor on the CPU, even if it is moved to the GPU right afterwards."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, torch.Tensor) and first.device.type == "cpu":
            self.found.append(str(function))
        return output


def on_fake_cuda(kind, *, train=False, dtype=torch.float32, **settings):
    """Run a model there, patched if there are settings, and return the functions that created CPU tensors."""
    model = kind.build(2, 32).to(dtype).train(train)
    if settings:
        tome.apply_patch(model, **settings)
    with FakeTensorMode(allow_non_fake_inputs=False):
        move(model)
        x = torch.empty(2, 3, 32, 32, device="cuda", dtype=dtype)
        with CreatedOnCPU() as created:
            output = model(x)
            if settings.get("trace_source"):
                results = model.tome.sizes, model.tome.source
                results += (model.tome.unmerge(model.tome.sizes[:, :, None]),)
                assert {result.device.type for result in results} == {"cuda"}
    assert output.device.type == "cuda"
    return created.found


def fake(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def move(model):
    """Replace all tensors of the model by fake CUDA tensors; ``to`` cannot do that."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(fake(p))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = fake(buffer)


@pytest.mark.parametrize("r", [0, 8, [0, 8]], ids=str)
def test_nothing_is_made_on_the_cpu_and_no_value_is_read(kind, r):
    """Except for the CPU tensors of the unpatched model itself."""
    assert on_fake_cuda(kind, r=r, trace_source=True) == on_fake_cuda(kind)


def test_training_there(kind):
    assert on_fake_cuda(kind, train=True, r=8) == on_fake_cuda(kind, train=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_there(kind, dtype):
    assert on_fake_cuda(kind, dtype=dtype, r=8) == on_fake_cuda(kind, dtype=dtype)


FAULTS = {
    "made on the CPU and moved": (lambda x: torch.zeros(1).to(x.device), None),
    "made on the CPU": (lambda x: x + torch.zeros(2), RuntimeError),
    "a value read": (lambda x: x.sum().item(), DataDependentOutputException),
    "a shape read": (lambda x: x[x > 0], DynamicOutputShapeException),
}


@pytest.mark.parametrize(("fault", "error"), FAULTS.values(), ids=FAULTS)
def test_a_fault_would_be_seen(vit, monkeypatch, fault, error):
    weighted_mean = reduce_module.weighted_mean

    def faulty(plan, x, *rest):
        fault(x)
        return weighted_mean(plan, x, *rest)

    monkeypatch.setattr(reduce_module, "weighted_mean", faulty)
    if error is None:
        assert on_fake_cuda(vit, r=8) != on_fake_cuda(vit)
    else:
        with pytest.raises(error):
            on_fake_cuda(vit, r=8)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_shapes_on_the_meta_device(kind):
    """How many tokens each layer keeps of large images, for no memory and no arithmetic; and training,
    whose backward pass fake CUDA tensors cannot have: a tensor of another device would raise here too."""
    with torch.device("meta"):
        model = kind.build(3, 224).train()
    tome.apply_patch(model, r=100)
    output = model(torch.empty(4, 3, 224, 224, device="meta"))
    assert output.shape[0] == 4
    assert model.tome.tokens == [3136 + kind.prefix - n for n in (100, 200, 300)]
    output.sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert {tensor.device.type for tensor in (output, model.tome.sizes, *grads)} == {"meta"}


def test_a_model_moved_after_patching(kind):
    """Nothing of the patch has to move along: it holds no tensor of the model."""
    model = tome.apply_patch(kind.build(2, 32), r=8).eval()
    model(images(2).float())
    model.to("meta")
    assert model(images(2).float().to("meta")).device.type == "meta"
