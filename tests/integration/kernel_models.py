"""Models that the tests of the compiled kernels run, and a spy on whether these ran."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
import timm
import torch
from adapters.cases import OWN, by_name
from adapters.frameworks import PADDLE, floats_to

import tomecore.adapters.engine.reduce as reduce
import tomecore.adapters.paddle
import tomecore.adapters.torch


class Used:
    """Whether the kernels ran, merge by merge; ``forbidden``: they do not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.each: list[bool] = []
        self.forbidden = False
        self._asked = reduce.fused_merge
        monkeypatch.setattr(reduce, "fused_merge", self)

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


def same(got, expected):
    np.testing.assert_allclose(got, expected, 1e-5, 1e-5 * float(np.abs(expected).max()))
