"""The attention of the class token, from one query row, against the attention written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest
import torch

from adapters import explicit
from adapters.cases import OWN
from adapters.frameworks import PADDLE, TORCH
from tomecore.adapters.engine.class_attention import check_class_attention, class_attention
from tomecore.errors import UnsupportedModelError

WITH_CLASS_TOKEN = [case for case in OWN if case.prefix]


@pytest.fixture(params=WITH_CLASS_TOKEN, ids=lambda case: case.name)
def with_class(request):
    return request.param


def spec_of(with_class, model):
    block = with_class.blocks(model)[0]
    (spec,) = (s for s in with_class.fw.tome.SPECS if s.is_tower(model) and s.is_block(block))
    return spec


def inputs(with_class, model):
    """Tokens that enter the block, and sizes, of which some are 0 as those of padding."""
    x = with_class.fw.numpy(with_class.entering(model, with_class.images()))
    sizes = np.random.default_rng(0).integers(1, 9, x.shape[:2]).astype(np.float64)
    sizes[0, -3:] = 0
    return x, sizes


def found(with_class, model, x, bias):
    fw = with_class.fw
    x, bias = fw.tensor(x), None if bias is None else fw.tensor(bias)
    block = with_class.blocks(model)[1]
    return class_attention(fw.tome.HOST, spec_of(with_class, model), block, x, bias, {})


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("biased", [True, False])
def test_the_weights_are_those_of_the_attention(with_class, biased):
    model = with_class.model()
    x, sizes = inputs(with_class, model)
    bias = np.log(sizes)[:, None, None] if biased else None
    weights = with_class.fw.numpy(found(with_class, model, x, bias))
    sizes = sizes if biased else np.ones_like(sizes)
    expected = explicit.class_attention(with_class.fw, with_class.blocks(model)[1], x, sizes)
    assert weights.shape == x.shape[:2]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    if biased:
        assert (
            weights[0, -3:] < 1e-300
        ).all()  # Paddle's exp(-inf) is the smallest number there is


def test_a_patched_model_gives_the_same(with_class):
    x, _ = inputs(with_class, with_class.model())
    plain, patched = with_class.model(), with_class.patched(r=8)
    same = [with_class.fw.numpy(found(with_class, model, x, None)) for model in (plain, patched)]
    assert np.array_equal(*same)


@pytest.mark.parametrize(
    ("with_class", "dtype"),
    [
        *((with_class, "float32") for with_class in WITH_CLASS_TOKEN),
        *((with_class, "bfloat16") for with_class in WITH_CLASS_TOKEN if with_class.fw is TORCH),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_softmax_is_in_float32(with_class, dtype):
    fw, model = with_class.fw, with_class.model()
    x, _ = inputs(with_class, model)
    expected = fw.numpy(found(with_class, model, x, None))
    target = getattr(torch if fw is TORCH else paddle, dtype)
    model, spec = model.to(dtype=target), spec_of(with_class, model)
    x = fw.tensor(x).to(target)
    weights = class_attention(fw.tome.HOST, spec, with_class.blocks(model)[1], x, None, {})
    assert str(weights.dtype).endswith("float32")
    weights = fw.numpy(weights)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    limit = {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=limit * expected.max())


def test_an_adapter_around_the_projection_is_called(with_class):
    """A projection that is no plain linear layer is called as a module, and not taken apart."""
    fw, model = with_class.fw, with_class.model()
    x, sizes = inputs(with_class, model)
    attn = with_class.blocks(model)[1].attn
    hook = fw.post_hook(attn.qkv, lambda module, given, output: 2 * output)
    weights = fw.numpy(found(with_class, model, x, None))
    expected = explicit.class_attention(fw, with_class.blocks(model)[1], x, np.ones_like(sizes))
    hook.remove()
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)
    assert np.abs(fw.numpy(found(with_class, model, x, None)) - weights).max() > 1e-4


def test_in_a_static_graph_of_paddle():
    with_class = next(with_class for with_class in WITH_CLASS_TOKEN if with_class.fw is PADDLE)
    model = with_class.model()
    spec, block = spec_of(with_class, model), with_class.blocks(model)[1]
    x, _ = inputs(with_class, model)

    def weights(x):
        return class_attention(PADDLE.tome.HOST, spec, block, x, None, {})

    given = [paddle.static.InputSpec([None, x.shape[1], x.shape[2]], "float64")]
    program = paddle.jit.to_static(weights, input_spec=given, full_graph=True)
    np.testing.assert_allclose(
        program(PADDLE.tensor(x)).numpy(),
        found(with_class, model, x, None).numpy(),
        rtol=0,
        atol=1e-7,
    )


def test_in_a_compiled_graph_of_torch():
    with_class = next(with_class for with_class in WITH_CLASS_TOKEN if with_class.fw is TORCH)
    model = with_class.model()
    spec, block = spec_of(with_class, model), with_class.blocks(model)[1]
    x, _ = inputs(with_class, model)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def weights(x):
        return class_attention(TORCH.tome.HOST, spec, block, x, None, {})

    expected = TORCH.numpy(found(with_class, model, x, None))
    np.testing.assert_allclose(TORCH.numpy(weights(TORCH.tensor(x))), expected, rtol=0, atol=1e-14)


def half_of_post_norm(host, block, x, bias, given):
    return block.norm1(x + block.attn(x, attn_mask=bias))


def test_an_anatomy_of_the_user_without_a_norm(with_class):
    """Of a post-norm block: the attention gets the tokens as they are."""
    fw, model = with_class.fw, with_class.model()
    spec, block = spec_of(with_class, model), with_class.blocks(model)[1]
    anatomy = dataclasses.replace(spec.anatomy, of=half_of_post_norm, norm="")
    mine = dataclasses.replace(spec, attend=half_of_post_norm, anatomy=anatomy, family="mine")
    x, sizes = inputs(with_class, model)
    check_class_attention(fw.tome.HOST, mine, model, block)
    weights = class_attention(fw.tome.HOST, mine, block, fw.tensor(x), None, {})
    del block.norm1
    expected = explicit.class_attention(fw, block, x, np.ones_like(sizes))
    np.testing.assert_allclose(fw.numpy(weights), expected, rtol=0, atol=1e-14)


# --- refusals


def refused(with_class, model, text, spec=None):
    spec = spec_of(with_class, model) if spec is None else spec
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        check_class_attention(with_class.fw.tome.HOST, spec, model, with_class.blocks(model)[0])
    assert str(caught.value).startswith(
        "the attention of the class token is not available for this"
    )
    assert "matching='tome'" in str(caught.value)


@pytest.mark.parametrize(
    "with_class",
    [with_class for with_class in OWN if not with_class.prefix],
    ids=lambda case: case.name,
)
def test_a_model_without_a_class_token(with_class):
    refused(
        with_class, with_class.model(), r"VisionTransformer: it has no class token\. Use a matching"
    )


def test_another_attention(with_class):
    model = with_class.model()
    check_class_attention(
        with_class.fw.tome.HOST, spec_of(with_class, model), model, with_class.blocks(model)[0]
    )
    with_class.blocks(model)[0].attn.gate = with_class.fw.linear(32, 32)
    refused(
        with_class,
        model,
        r"its attention \(.*Attention\) holds gate, which the family's description",
    )


def test_a_spec_with_another_half_has_no_anatomy(with_class):
    """The anatomy goes with one attention half: a spec made of another must not keep it."""
    model = with_class.model()
    spec = spec_of(with_class, model)
    assert dataclasses.replace(spec, notes="").anatomy is spec.anatomy
    other = dataclasses.replace(spec, attend=lambda *given: spec.attend(*given), family="mine")
    assert other.anatomy is None
    refused(with_class, model, "tomecore has no anatomy of the attention of mine", other)
    x, _ = inputs(with_class, model)
    with pytest.raises(UnsupportedModelError, match="no anatomy of the attention of mine"):
        class_attention(
            with_class.fw.tome.HOST,
            other,
            with_class.blocks(model)[0],
            with_class.fw.tensor(x),
            None,
            {},
        )
