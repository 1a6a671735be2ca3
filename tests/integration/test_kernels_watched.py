"""Kernels are not used if something watches operations, needs gradients or traces graphs."""

from __future__ import annotations

import paddle
import pytest
import torch
from kernel_models import Paddle, Used, images, in_float32, same
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tomecore.adapters.engine.reduce as reduce
import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters.engine.state import ForwardInfo, TokenState


@pytest.fixture
def used(monkeypatch):
    return Used(monkeypatch)


@pytest.mark.parametrize(
    "own", ["compile", "export", "trace", "flops", "jvp", "vmap", "train", "training mode"]
)
@pytest.mark.filterwarnings("ignore")
def test_torch_where_arrays_are_more_than_memory(own, used):
    """Results of one image must not be constants of the next, nor their derivatives zero."""
    model = tomecore.adapters.torch.apply_patch(in_float32("torch-plain"), r=8)
    first, x = torch.from_numpy(images(0)), torch.from_numpy(images(1))
    with torch.no_grad():
        expected = model(x)
        assert used.take() == [True] * 4
        found = WAYS[own](model, first, x, used)
        assert not any(used.take())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def compiled(model, first, x, used):
    torch.compiler.reset()
    try:
        made = torch.compile(model, fullgraph=True, backend="eager")
        made(first)
        return made(x)
    finally:
        torch.compiler.reset()


def counted(model, first, x, used):
    counts = []
    for forbidden in (False, True):
        used.forbidden = forbidden
        with FlopCounterMode(display=False) as mode:
            found = model(x)
        counts.append(mode.get_total_flops())
    used.forbidden = False
    assert counts[0] == counts[1]
    return found


def pushed(model, first, x, used):
    with sdpa_kernel(SDPBackend.MATH):  # the other forms have no derivatives forward
        found, change = torch.func.jvp(model, (x,), (first,))
        other = used.without(lambda: torch.func.jvp(model, (x,), (first,)))[1]
    assert change.abs().max() > 0
    torch.testing.assert_close(change, other)
    return found


def in_training(model, first, x, used):
    """Without gradients too: a checkpoint runs blocks so, and computes them again with gradients."""
    return model.train()(x)


def trained(model, first, x, used):
    with torch.enable_grad():
        found = model(x)
        found.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.blocks.parameters())
    return found.detach()


WAYS = {
    "compile": compiled,
    "export": lambda model, first, x, used: torch.export.export(model, (first,)).module()(x),
    "trace": lambda model, first, x, used: torch.jit.trace(model, first, check_trace=False)(x),
    "flops": counted,
    "jvp": pushed,
    "vmap": lambda model, first, x, used: torch.func.vmap(model)(x[:, None])[:, 0],
    "train": trained,
    "training mode": in_training,
}


def test_paddle_where_arrays_are_more_than_memory(used):
    """A static graph agrees with eager, and gradients arrive."""
    model = tomecore.adapters.paddle.apply_patch(in_float32("paddle-plain"), r=8)
    expected = Paddle.run(model, 1)
    assert used.take() == [True] * 4
    output = model(paddle.to_tensor(images(1)))
    output.sum().backward()
    same(output.numpy(), expected)
    for parameter in model.blocks.parameters():
        assert float(parameter.grad.abs().max()) > 0
    assert not any(used.take())
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32")]
    static = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    with paddle.no_grad():
        static(paddle.to_tensor(images(0)))
        same(static(paddle.to_tensor(images(1))).numpy(), expected)
    assert not any(used.take())


def test_paddle_by_its_bytecode():
    """The graph is built from the bytecode, with eager calls in between."""
    model = tomecore.adapters.paddle.apply_patch(in_float32("paddle-plain"), r=8)
    expected = Paddle.run(model, 1)
    model = paddle.jit.to_static(model, full_graph=False)
    Paddle.run(model, 0)
    same(Paddle.run(model, 1), expected)


def test_padding_is_left_to_the_calls():
    model = tomecore.adapters.torch.apply_patch(in_float32("torch-plain"), r=8)
    block, x, ones = model.blocks[0], torch.randn(2, 65, 32), torch.ones(2, 65)
    key = torch.randn(2, 4, 65, 8)
    entry = ForwardInfo(num_tokens=65, batch=2, device=x.device, number=0, keep_all=False)
    for valid in (None, ones):
        run = TokenState(entry, None, 65, sizes=ones, valid=valid)
        found = reduce.fused_merge(block._tome, block, x, [key], run, 8)
        assert (found is None) == (valid is not None)
