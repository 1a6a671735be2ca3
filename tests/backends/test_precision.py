"""Similarities are products in float32 where a library's settings allow less: TF32, bfloat16, AMP.

A GPU in TF32 is emulated: its products round each number to 11 bits, and sum in float32.
"""

from __future__ import annotations

import functools

import numpy as np
import paddle
import pytest
import torch

import tomecore as tc
from tomecore.backends import backend_of, paddle_products, torch_products

MATCHINGS = {
    "tome": lambda keys: tc.bipartite_soft_matching(keys, 16, protected=1),
    "kth": lambda keys: tc.kth_bipartite_soft_matching(keys, 3),
    "random": lambda keys: tc.random_bipartite_soft_matching(keys, 60),
}


def rounded(x, bits):
    """Round float32 to the nearest number with this many bits; leave everything else unchanged."""
    if x.dtype != np.float32:
        return x
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2.0**bits) / 2.0**bits, exponent).astype("float32")


def some_keys():
    """(64, 197, 24), as similar to each other as tokens of an image are."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(64, 1, 24)) + 0.5 * rng.normal(size=(64, 197, 24))).astype("float32")


@pytest.fixture(params=["torch", "paddle"])
def gpu(request, monkeypatch):
    """(to_array, to_numpy) of a library whose products are computed in TF32, or in bfloat16."""

    def of(bits, careful=True):
        if request.param == "torch":
            product = torch.bmm

            def bmm(a, b, **out):
                a, b = (torch.from_numpy(rounded(x.contiguous().numpy(), bits)) for x in (a, b))
                return product(a, b, **out)

            monkeypatch.setattr(torch, "bmm", bmm)
            monkeypatch.setattr(torch_products, "_by_float64", torch_products._by_parts)
            monkeypatch.setattr(torch_products, "may_reduce", lambda kind: careful)
            return torch.from_numpy, torch.Tensor.numpy
        product = paddle.matmul

        def matmul(a, b, transpose_y=False):
            a, b = (paddle.to_tensor(rounded(x.numpy(), bits)) for x in (a, b))
            return product(a, b, transpose_y=transpose_y)

        monkeypatch.setattr(paddle_products, "matmul", matmul)
        monkeypatch.setattr(paddle_products, "off_cpu", lambda x: True)
        monkeypatch.setattr(paddle_products, "tf32", lambda: careful)
        return paddle.to_tensor, paddle.Tensor.numpy

    return of


@pytest.mark.parametrize("bits", [11, 8], ids=["TF32", "bfloat16"])
@pytest.mark.parametrize("match", MATCHINGS.values(), ids=MATCHINGS.keys())
def test_decisions_are_those_of_float32(gpu, match, bits):
    keys = some_keys()
    expected = match(keys).slots
    to_array, to_numpy = gpu(bits)
    np.testing.assert_array_equal(to_numpy(match(to_array(keys)).slots), expected)


@pytest.mark.parametrize("bits", [11, 8], ids=["TF32", "bfloat16"])
def test_without_care_they_are_not(gpu, bits):
    """Otherwise the emulation would show nothing."""
    keys = some_keys()
    expected = MATCHINGS["tome"](keys).slots
    to_array, to_numpy = gpu(bits, careful=False)
    found = to_numpy(MATCHINGS["tome"](to_array(keys)).slots)
    assert (found != expected).any(axis=1).sum() > 5


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_products_are_as_exact_as_in_float32(gpu, scale):
    rng = np.random.default_rng(1)
    a, b = (scale * rng.normal(size=(2, n, 64)).astype("float32") for n in (9, 7))
    exact = a.astype(float) @ b.astype(float).swapaxes(1, 2)
    to_array, to_numpy = gpu(8)
    a, b = to_array(a), to_array(b)
    found = to_numpy(backend_of(a).products(a, b))
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


@pytest.fixture
def settings():
    """Put PyTorch's settings back."""
    before = torch.get_float32_matmul_precision()
    yield torch
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_settings_of_torch(settings, kind, monkeypatch):
    monkeypatch.setattr(torch_products, "_TF32", None)
    monkeypatch.setattr(torch_products, "_ONEDNN", "STRICT")
    for precision, expected in (("highest", False), ("high", True), ("medium", True)):
        torch.set_float32_matmul_precision(precision)
        assert torch_products.may_reduce(kind) == expected
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = True
    assert torch_products.may_reduce("cuda")


@pytest.mark.parametrize(
    ("name", "value", "kind", "expected"),
    [
        ("_TF32", "1", "cuda", True),
        ("_TF32", "0", "cuda", False),
        ("_ONEDNN", "BF16", "cpu", True),
        ("_ONEDNN", "any", "cpu", True),
    ],
)
def test_the_environment_decides_first(settings, monkeypatch, name, value, kind, expected):
    monkeypatch.setattr(torch_products, name, value)
    torch.set_float32_matmul_precision("highest" if expected else "high")
    assert torch_products.may_reduce(kind) == expected


@pytest.mark.parametrize("parts", [False, True], ids=["cpu", "gpu"])
def test_a_compiled_graph_follows_the_setting(settings, monkeypatch, parts):
    """It multiplies exactly if the setting was on when it was compiled, and recompiles on a change."""
    if parts:
        monkeypatch.setattr(torch_products, "_by_float64", torch_products._by_parts)
    graphs = []

    def backend(graph, example):
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    match = functools.partial(MATCHINGS["tome"], torch.from_numpy(some_keys()))
    compiled = torch.compile(lambda: match().slots, backend=backend, fullgraph=True)
    expected, mark = match().slots, " & " if parts else ".double()"
    for precision, careful in (("highest", False), ("high", True)):
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(compiled(), expected)
        assert (mark in graphs[-1]) == careful, graphs[-1]
    assert len(graphs) == 2
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(compiled(), expected)
    torch._dynamo.reset()


def test_other_threads_and_settings_are_left_alone(settings):
    torch.set_float32_matmul_precision("high")
    MATCHINGS["tome"](torch.from_numpy(some_keys()))
    assert torch.get_float32_matmul_precision() == "high"


def test_sums_over_heads_are_no_products_on_a_gpu(monkeypatch):
    """In TF32 a product with ones would round the keys."""
    from tomecore.backends import paddle as paddle_backend

    used = []
    monkeypatch.setattr(paddle_backend, "off_cpu", lambda x: True)
    monkeypatch.setattr(paddle, "matmul", lambda *given: used.append(given))
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4))
    np.testing.assert_allclose(paddle_backend.sum(paddle.to_tensor(x), axis=2).numpy(), x.sum(2))
    assert not used
