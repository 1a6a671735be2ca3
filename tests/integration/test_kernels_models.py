"""Models with the compiled kernels compute what they compute without, and use them where they may."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest
import timm
import torch
from adapters.cases import OWN, by_name
from adapters.frameworks import PADDLE, floats_to
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tomecore.adapters._reduce as reduce
import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters._state import Entry, Run
from tomecore.backends import _fused


class Used:
    """Whether the kernels ran, merge by merge; ``forbidden``: they do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.each: list[bool] = []
        self.forbidden = False
        self._asked = reduce.in_one_go
        monkeypatch.setattr(reduce, "in_one_go", self)

    def __call__(self, *args):
        found = None if self.forbidden else self._asked(*args)
        self.each.append(found is not None)
        return found

    def take(self) -> list[bool]:
        each, self.each = self.each, []
        return each

    def without(self, function):
        self.forbidden = True
        try:
            return function()
        finally:
            self.forbidden = False
            assert not any(self.take())


@pytest.fixture
def used(monkeypatch):
    return Used(monkeypatch)


def in_float32(name, seed=0):
    """Our own ViT of 65 tokens and four blocks, with no parameter at its neutral value."""
    case = by_name(OWN)[name]
    model = case.model(seed=seed)
    return model.float() if case.fw is not PADDLE else floats_to(model, "float32")


def images(seed=0, batch=2, size=32):
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size)).astype("float32")


def of_timm():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10).eval()


class Torch:
    adapter = tomecore.adapters.torch
    merges = 12
    build = staticmethod(of_timm)

    @staticmethod
    def run(model, seed=0):
        with torch.inference_mode():
            return model(torch.from_numpy(images(seed, size=96))).numpy()


class Paddle:
    adapter = tomecore.adapters.paddle
    merges = 4

    @staticmethod
    def build():
        return in_float32("paddle-plain")

    @staticmethod
    def run(model, seed=0):
        with paddle.no_grad():
            return model(paddle.to_tensor(images(seed))).numpy()


both = pytest.mark.parametrize("fw", [Torch, Paddle])
SETTINGS = [
    {},
    {"prop_attn": False},
    {"trace_source": True},
    {"restore": False, "trace_source": True},
]


def same(got, expected):
    np.testing.assert_allclose(got, expected, 1e-5, 1e-5 * float(np.abs(expected).max()))


def results(fw, model, traced):
    output = fw.run(model)
    source = model.tome.source.numpy() if traced else None
    return output, model.tome.tokens, model.tome.sizes.numpy(), source


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@both
def test_a_model_with_and_without(fw, settings, used):
    model = fw.adapter.apply_patch(fw.build(), r=2 if fw is Torch else 12, **settings)
    traced = "trace_source" in settings
    got = results(fw, model, traced)
    assert used.take() == [True] * fw.merges
    expected = used.without(lambda: results(fw, model, traced))
    same(got[0], expected[0])
    assert got[1] == expected[1]
    assert expected[1][-1] < expected[1][0]
    np.testing.assert_array_equal(got[2], expected[2])
    np.testing.assert_array_equal(got[3], expected[3])


def test_intermediate_layers(used):
    model = tomecore.adapters.torch.apply_patch(of_timm(), r=2)
    x = torch.from_numpy(images(size=96))

    def layers():
        with torch.no_grad():
            final, grids = model.forward_intermediates(x)
        return [final, *grids]

    got = layers()
    assert used.take() == [True] * 12
    for one, other in zip(got, used.without(layers), strict=True):
        same(one.numpy(), other.numpy())


def test_bfloat16_weights(used):
    """Decisions of later layers hang on roundings, so the first layer's alone are compared."""
    model = tomecore.adapters.torch.apply_patch(of_timm().bfloat16(), r=[7] + [0] * 11)
    x = torch.from_numpy(images(size=96)).bfloat16()
    with torch.no_grad():
        got = model(x).float(), model.tome.sizes
        assert used.take() == [True]
        expected = used.without(lambda: (model(x).float(), model.tome.sizes))
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=0.02, atol=0.02)


def test_autocast(used):
    """Of keys in bfloat16, the similarities are float32 with kernels and without."""
    model = tomecore.adapters.torch.apply_patch(of_timm(), r=[3] + [0] * 11, trace_source=True)
    x = torch.from_numpy(images(size=96))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, sizes, source = model(x).float(), model.tome.sizes, model.tome.source
        assert used.take() == [True]
        expected = used.without(lambda: model(x).float())
    assert got.isfinite().all()
    assert torch.equal(sizes, model.tome.sizes)
    assert torch.equal(source, model.tome.source)
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("own", ["compile", "export", "trace", "flops", "jvp", "vmap", "train"])
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
    """Where graphs are made of what Python runs, and of eager calls between them."""
    model = tomecore.adapters.paddle.apply_patch(in_float32("paddle-plain"), r=8)
    expected = Paddle.run(model, 1)
    model = paddle.jit.to_static(model, full_graph=False)
    Paddle.run(model, 0)
    same(Paddle.run(model, 1), expected)


def test_padding_is_left_to_the_calls():
    model = tomecore.adapters.torch.apply_patch(in_float32("torch-plain"), r=8)
    block, x, ones = model.blocks[0], torch.randn(2, 65, 32), torch.ones(2, 65)
    key = torch.randn(2, 4, 65, 8)
    entry = Entry(num_tokens=65, batch=2, device=x.device, number=0, every=False)
    for valid in (None, ones):
        run = Run(entry, None, 65, sizes=ones, valid=valid)
        found = reduce.in_one_go(block._tome, block, x, [key], run, 8)
        assert (found is None) == (valid is not None)


@pytest.mark.parametrize("name", ["torch-plain", "paddle-plain"])
def test_threads_do_not_share_space(name, monkeypatch):
    """Each has filled its space before either computes products: what is shared would be overwritten."""
    fw = Paddle if name.startswith("paddle") else Torch
    models = [fw.adapter.apply_patch(in_float32(name, seed), r=8) for seed in (0, 1)]

    def run(place):
        x = images(place)
        with torch.no_grad(), paddle.no_grad():
            to_array = torch.from_numpy if fw is Torch else paddle.to_tensor
            return models[place](to_array(x)).numpy()

    expected = [run(place) for place in (0, 1)]
    barrier, room, got = threading.Barrier(2, timeout=60), _fused.room, {}

    def slow(*args):
        space = room(*args)

        def products():
            barrier.wait()
            return space.products()

        return space._replace(products=products)

    monkeypatch.setattr(_fused, "room", slow)
    threads = [
        threading.Thread(target=lambda place=place: got.update({place: run(place)}))
        for place in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for place in (0, 1):
        np.testing.assert_array_equal(got[place], expected[place])
