"""The compiled kernels refuse arrays that they do not know, or for which they would be slower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from kernel_cases import KINDS, asked, fused, some
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tomecore.backends.kernels.cpu import fused as fused_module
from tomecore.backends.kernels.cpu.fused import Keys, pays_off
from tomecore.backends.torch import MEMORY


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Other(torch.Tensor):
    """A subclass may mean anything."""


def in_mode(mode: Callable[[], Any]) -> Callable[[Keys, torch.Tensor], Any]:
    def run(keys, x):
        with mode():
            return fused(keys, x)

    return run


def transformed(transform: Callable[..., Any]) -> Callable[[Keys, torch.Tensor], Any]:
    """``fused`` seen inside of a function transform over x."""

    def run(keys, x):
        found = []

        def function(x):
            found.append(fused(keys, x))
            return x.sum()

        transform(function, x)
        assert len(found) == 1
        return found[0]

    return run


def dual(keys, x):
    with torch.no_grad(), forward_ad.dual_level():
        return fused(keys, forward_ad.make_dual(x, torch.ones_like(x)))


REFUSED = {
    "float64": lambda keys, x: fused(keys, x.double()),
    "float16": lambda keys, x: fused(keys, x.half()),
    "keys in float64": lambda keys, x: fused(keys._replace(array=keys.array.double()), x),
    "keys in float16": lambda keys, x: fused(keys._replace(array=keys.array.half()), x),
    "gradients": lambda keys, x: fused(keys, x.requires_grad_()),
    "of a graph": lambda keys, x: fused(keys, x.requires_grad_() * 2),
    "subclass": lambda keys, x: fused(keys, x.as_subclass(Other)),
    "keys a subclass": lambda keys, x: fused(keys._replace(array=keys.array.as_subclass(Other)), x),
    "columns apart": lambda keys, x: fused(keys, x.mT.contiguous().mT),
    "a negative view": lambda keys, x: fused(keys, torch._neg_view(x)),
    "meta": lambda keys, x: fused(keys._replace(array=keys.array.to("meta")), x.to("meta")),
    "dispatch mode": in_mode(Watching),
    "make_fx": transformed(lambda function, x: make_fx(function)(x)),
    "make_fx, before": transformed(lambda function, x: make_fx(function, pre_dispatch=True)(x)),
    "flops": in_mode(lambda: FlopCounterMode(display=False)),
    "jit.trace": transformed(lambda function, x: torch.jit.trace(function, x, check_trace=False)),
    "vmap": transformed(lambda function, x: torch.func.vmap(function)(x[None])),
    "grad": transformed(lambda function, x: torch.func.grad(function)(x)),
    "jvp": transformed(lambda function, x: torch.func.jvp(function, (x,), (x,))),
    "forward_ad": dual,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_torch_refuses(how):
    assert fused(*some()) is not None  # the same arrays without that
    with torch.no_grad() if how is dual else torch.enable_grad():
        assert how(*some()) is None


UNFIT = {
    "fewer keys": ("qkv", lambda array: array[:, :, :-1]),
    "fewer keys, tokens first": ("tokens first", lambda array: array[:, :-1]),
    "fewer keys, in the last axis": ("in the last axis", lambda array: array[:, :-1]),
    "a sample less": ("qkv", lambda array: array[:-1]),
    "a sample less, in the last axis": ("in the last axis", lambda array: array[:-1]),
    "no heads of one width": ("in the last axis", lambda array: array[:, :, :-1]),
}


@pytest.mark.parametrize(("layout", "cut"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_keys_that_are_not_those_of_the_tokens_are_not_read(kind, layout, cut):
    """It would be memory of something else; the calls say what is wrong."""
    key = np.random.default_rng(4).standard_normal((2, 15, 2, 8))
    keys, x = asked(kind, key, layout)[:2]
    assert fused(keys, x) is not None
    assert fused(keys._replace(array=cut(keys.array)), x) is None


def test_heads_said_to_be_in_another_axis():
    keys, x = some()
    assert fused(keys._replace(axis=2), x) is None


def test_gradients_that_nobody_wants_do_not_hinder():
    keys, x = some()
    with torch.no_grad():
        assert fused(keys._replace(array=keys.array.requires_grad_()), x.requires_grad_())
    with torch.inference_mode():
        assert fused(keys, x * 2)


def test_space_made_in_inference_mode_serves_outside_of_it():
    fused_module._kept.spaces.clear()
    with torch.inference_mode():
        first = fused(*some())
    np.testing.assert_array_equal(fused(*some()).x.numpy(), first.x.numpy())


def test_paddle_refuses():
    kind = KINDS[2]
    key = np.random.default_rng(4).standard_normal((2, 15, 2, 8))
    keys, x = asked(kind, key)[:2]
    assert fused(keys, x) is not None
    assert fused(keys, x.astype("float64")) is None
    assert fused(keys._replace(array=keys.array.astype("float64")), x) is None
    assert fused(keys, paddle.transpose(paddle.transpose(x, [2, 0, 1]).clone(), [1, 2, 0])) is None
    x.stop_gradient = False
    assert fused(keys, x) is None
    with paddle.no_grad():
        assert fused(keys, x) is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_one_or_two_threads_are_always_worth_it(threads):
    assert pays_off(1, threads)
    assert pays_off(10**12, threads)


def test_many_threads_are_worth_it_for_little_alone(monkeypatch):
    assert pays_off(197 * 384, 16)
    assert not pays_off(64 * 197 * 768, 16)
    keys, x = some()
    monkeypatch.setattr(fused_module, "_ELEMENTS", x.numel() // 2)
    many = dataclasses.replace(MEMORY, threads=lambda: 16)
    assert fused_module.match_and_merge(many, keys, x, None, None, 3, 1) is None
