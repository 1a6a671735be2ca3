"""``paddle.quantization`` of whole models, which wraps dropouts and norms: merging or not."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.quantization import PTQ, QAT, QuantConfig
from paddle.quantization.observers import AbsmaxObserver
from paddle.quantization.quanters import FakeQuanterWithAbsMaxObserver

from paddle_production.models import CLAS, OWN_PLAIN, PPIM
from tomecore.adapters import paddle as tome
from tomecore.errors import UnsupportedModelError

case_of = pytest.mark.parametrize("case", [OWN_PLAIN, CLAS, PPIM], ids=lambda case: case.name)
kind_of = pytest.mark.parametrize("kind", ["QAT", "PTQ"])


def quantised(kind, model):
    """With everything in it observed or quantised, calibrated on images."""
    if kind == "QAT":
        quanter = FakeQuanterWithAbsMaxObserver(moving_rate=0.9)
        model.train()
        model = QAT(QuantConfig(activation=quanter, weight=quanter)).quantize(model)
    else:
        model = PTQ(QuantConfig(activation=AbsmaxObserver(), weight=AbsmaxObserver())).quantize(
            model
        )
    for seed in range(2):
        model(images(4, seed))
    if kind == "PTQ":  # QAT's convert fails in Paddle 3.3 for whole models of any kind
        model = PTQ(QuantConfig(activation=None, weight=None)).convert(model)
    model.eval()
    return model


def images(batch, seed):
    paddle.seed(seed)
    return paddle.randn([batch, 3, 32, 32])


def built(case):
    return case.fw.single(case.model(depth=2))


def off(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@case_of
@kind_of
def test_patched_models_are_quantised(case, kind):
    """r = 0 is the quantised model itself; merging is as near to the unquantised model as that is."""
    model, x = built(case), images(3, 7)
    plain = quantised(kind, model)
    patched = quantised(kind, tome.apply_patch(built(case), r=0))
    assert np.array_equal(patched(x).numpy(), plain(x).numpy())
    error = off(plain(x), model(x))
    assert error > 1e-4  # it is quantised
    merging = tome.apply_patch(built(case), r=8)
    found = quantised(kind, merging)(x)
    assert off(found, merging(x)) < 3 * error
    assert merging.tome.tokens == [57, 49]


@case_of
@kind_of
def test_quantised_attention_weights(case, kind):
    """The attention half of a merging block quantises what the library's forward quantises."""
    model = quantised(kind, tome.apply_patch(built(case), r=0))
    block = model.blocks[0]
    assert type(block.attn.attn_drop).__name__ == "ObserveWrapper"
    paddle.seed(3)
    x = paddle.randn([2, 65, 32])
    spec = model.tome._config.spec
    half, _ = spec.attend(tome.HOST, block, x, None, {})
    expected = x + block.drop_path(block.attn(block.norm1(x)))
    assert off(half, expected) < 1e-5
    observed = block.attn.attn_drop
    block.attn.attn_drop = observed._observed
    plain, _ = spec.attend(tome.HOST, block, x, None, {})
    assert off(plain, expected) > 1e-4
    block.attn.attn_drop = observed
    rows, _ = spec.trim.attend(tome.HOST, block, x, None, {}, 1)
    assert off(rows, expected[:, :1]) < 1e-2  # quantisers of whole activations see fewer rows


@case_of
@kind_of
@pytest.mark.parametrize("r", [0, 8])
def test_quantised_models_are_not_patched(case, kind, r):
    """In words; the model stays as it was."""
    model = quantised(kind, built(case))
    expected = model(images(3, 7)).numpy()
    with pytest.raises(UnsupportedModelError, match=r"norm1 is a paddle.*ObserveWrapper; tomec"):
        tome.apply_patch(model, r=r)
    assert np.array_equal(model(images(3, 7)).numpy(), expected)
