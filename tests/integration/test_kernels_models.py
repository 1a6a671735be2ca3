"""Models with the compiled kernels compute what they compute without, and use them where they may."""

from __future__ import annotations

import threading

import numpy as np
import paddle
import pytest
import torch
from kernel_models import Paddle, Torch, Used, images, in_float32, of_timm, same

import tomecore.adapters.torch
from tomecore.adapters.hosts import torch_attention
from tomecore.backends.kernels.cpu import fused as fused_module


@pytest.fixture
def used(monkeypatch):
    return Used(monkeypatch)


both = pytest.mark.parametrize("fw", [Torch, Paddle])
SETTINGS = [
    {},
    {"prop_attn": False},
    {"trace_source": True},
    {"restore": False, "trace_source": True},
]


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


def test_sizes_in_a_column(used, monkeypatch):
    """The kernels' bias has the requested form in each block after the first merge."""
    model = tomecore.adapters.torch.apply_patch(of_timm(), r=2)
    expected = Torch.run(model)
    assert used.take() == [True] * 12
    columns, by_column = [], torch_attention.attention_by_column

    def counted(*args, **kwargs):
        columns.append(1)
        return by_column(*args, **kwargs)

    monkeypatch.setattr(torch_attention, "attention_by_column", counted)
    tomecore.adapters.torch.apply_patch(model, prop_attn="column")
    same(Torch.run(model), expected)
    assert used.take() == [True] * 12
    assert len(columns) == 11


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
    """Decisions of later layers depend on rounding, so only the first layer's are compared."""
    model = tomecore.adapters.torch.apply_patch(of_timm().bfloat16(), r=[7] + [0] * 11)
    x = torch.from_numpy(images(size=96)).bfloat16()
    with torch.no_grad():
        got = model(x).float(), model.tome.sizes
        assert used.take() == [True]
        expected = used.without(lambda: (model(x).float(), model.tome.sizes))
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=0.02, atol=0.02)


def test_autocast(used):
    """For keys in bfloat16, the similarities are float32 with kernels and without."""
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
    barrier, workspace, got = threading.Barrier(2, timeout=60), fused_module.workspace, {}

    def slow(*args):
        space = workspace(*args)

        def products():
            barrier.wait()
            return space.products()

        return space._replace(products=products)

    monkeypatch.setattr(fused_module, "workspace", slow)
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
