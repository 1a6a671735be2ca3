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
from tomecore.adapters.engine.class_attention import check_class_attention, weights_and_values
from tomecore.errors import UnsupportedModelError

WITH_CLASS_TOKEN = [case for case in OWN if case.prefix]


def class_attention(*args):
    return weights_and_values(*args)[0]


@pytest.fixture(params=WITH_CLASS_TOKEN, ids=lambda case: case.name)
def one(request):
    return request.param


def spec_of(one, model):
    block = one.blocks(model)[0]
    (spec,) = (s for s in one.fw.tome.SPECS if s.is_tower(model) and s.is_block(block))
    return spec


def inputs(one, model):
    """Tokens that enter the block, and sizes, of which some are 0 as those of padding."""
    x = one.fw.numpy(one.entering(model, one.images()))
    sizes = np.random.default_rng(0).integers(1, 9, x.shape[:2]).astype(np.float64)
    sizes[0, -3:] = 0
    return x, sizes


def found(one, model, x, bias):
    fw = one.fw
    x, bias = fw.tensor(x), None if bias is None else fw.tensor(bias)
    block = one.blocks(model)[1]
    return class_attention(fw.tome.HOST, spec_of(one, model), block, x, bias, {})


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("biased", [True, False])
def test_the_weights_are_those_of_the_attention(one, biased):
    model = one.model()
    x, sizes = inputs(one, model)
    bias = np.log(sizes)[:, None, None] if biased else None
    weights = one.fw.numpy(found(one, model, x, bias))
    sizes = sizes if biased else np.ones_like(sizes)
    expected = explicit.class_attention(one.fw, one.blocks(model)[1], x, sizes)
    assert weights.shape == x.shape[:2]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    if biased:
        assert (
            weights[0, -3:] < 1e-300
        ).all()  # Paddle's exp(-inf) is the smallest number there is


def test_a_patched_model_gives_the_same(one):
    x, _ = inputs(one, one.model())
    plain, patched = one.model(), one.patched(r=8)
    same = [one.fw.numpy(found(one, model, x, None)) for model in (plain, patched)]
    assert np.array_equal(*same)


@pytest.mark.parametrize(
    ("one", "dtype"),
    [
        *((one, "float32") for one in WITH_CLASS_TOKEN),
        *((one, "bfloat16") for one in WITH_CLASS_TOKEN if one.fw is TORCH),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_softmax_is_in_float32(one, dtype):
    fw, model = one.fw, one.model()
    x, _ = inputs(one, model)
    expected = fw.numpy(found(one, model, x, None))
    target = getattr(torch if fw is TORCH else paddle, dtype)
    model, spec = model.to(dtype=target), spec_of(one, model)
    x = fw.tensor(x).to(target)
    weights = class_attention(fw.tome.HOST, spec, one.blocks(model)[1], x, None, {})
    assert str(weights.dtype).endswith("float32")
    weights = fw.numpy(weights)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    limit = {"float32": 1e-5, "bfloat16": 0.1}[dtype]
    np.testing.assert_allclose(weights, expected, rtol=0, atol=limit * expected.max())


def test_autocast_leaves_the_scores_in_float32():
    (one,) = (case for case in WITH_CLASS_TOKEN if case.golden and case.fw is TORCH)
    model = one.model()
    x = torch.as_tensor(inputs(one, model)[0]).float()
    model.float()
    with torch.autocast("cpu", torch.bfloat16):
        weights = class_attention(
            one.fw.tome.HOST, spec_of(one, model), one.blocks(model)[1], x, None, {}
        )
    assert weights.dtype == torch.float32
    assert (weights.sum(axis=1) - 1).abs().max() < 1e-6


def test_an_adapter_around_the_projection_is_called(one):
    """A projection that is not a plain linear layer is called as a module, and not split."""
    fw, model = one.fw, one.model()
    x, sizes = inputs(one, model)
    attn = one.blocks(model)[1].attn
    hook = fw.post_hook(attn.qkv, lambda module, given, output: 2 * output)
    weights = fw.numpy(found(one, model, x, None))
    expected = explicit.class_attention(fw, one.blocks(model)[1], x, np.ones_like(sizes))
    hook.remove()
    np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-14)
    assert np.abs(fw.numpy(found(one, model, x, None)) - weights).max() > 1e-4


def test_in_a_static_graph_of_paddle():
    one = next(one for one in WITH_CLASS_TOKEN if one.fw is PADDLE)
    model = one.model()
    spec, block = spec_of(one, model), one.blocks(model)[1]
    x, _ = inputs(one, model)

    def weights(x):
        return class_attention(PADDLE.tome.HOST, spec, block, x, None, {})

    given = [paddle.static.InputSpec([None, x.shape[1], x.shape[2]], "float64")]
    program = paddle.jit.to_static(weights, input_spec=given, full_graph=True)
    np.testing.assert_allclose(
        program(PADDLE.tensor(x)).numpy(),
        found(one, model, x, None).numpy(),
        rtol=0,
        atol=1e-7,
    )


def test_in_a_compiled_graph_of_torch():
    one = next(one for one in WITH_CLASS_TOKEN if one.fw is TORCH)
    model = one.model()
    spec, block = spec_of(one, model), one.blocks(model)[1]
    x, _ = inputs(one, model)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def weights(x):
        return class_attention(TORCH.tome.HOST, spec, block, x, None, {})

    expected = TORCH.numpy(found(one, model, x, None))
    np.testing.assert_allclose(TORCH.numpy(weights(TORCH.tensor(x))), expected, rtol=0, atol=1e-14)


def half_of_post_norm(host, block, x, bias, given):
    return block.norm1(x + block.attn(x, attn_mask=bias))


def test_an_anatomy_of_the_user_without_a_norm(one):
    """The attention of a post-norm block gets the tokens without a norm."""
    fw, model = one.fw, one.model()
    spec, block = spec_of(one, model), one.blocks(model)[1]
    anatomy = dataclasses.replace(spec.anatomy, of=half_of_post_norm, norm="")
    mine = dataclasses.replace(spec, attend=half_of_post_norm, anatomy=anatomy, family="mine")
    x, sizes = inputs(one, model)
    check_class_attention(fw.tome.HOST, mine, model, block)
    weights = class_attention(fw.tome.HOST, mine, block, fw.tensor(x), None, {})
    del block.norm1
    expected = explicit.class_attention(fw, block, x, np.ones_like(sizes))
    np.testing.assert_allclose(fw.numpy(weights), expected, rtol=0, atol=1e-14)


# --- refusals


def refused(one, model, text, spec=None):
    spec = spec_of(one, model) if spec is None else spec
    with pytest.raises(UnsupportedModelError, match=text) as caught:
        check_class_attention(one.fw.tome.HOST, spec, model, one.blocks(model)[0])
    assert str(caught.value).startswith(
        "the attention of the class token is not available for this"
    )
    assert "matching='tome'" in str(caught.value)


@pytest.mark.parametrize(
    "one",
    [one for one in OWN if not one.prefix],
    ids=lambda case: case.name,
)
def test_a_model_without_a_class_token(one):
    refused(one, one.model(), r"VisionTransformer: it has no class token\. Use a matching")


def test_another_attention(one):
    model = one.model()
    check_class_attention(one.fw.tome.HOST, spec_of(one, model), model, one.blocks(model)[0])
    one.blocks(model)[0].attn.gate = one.fw.linear(32, 32)
    refused(
        one,
        model,
        r"its attention \(.*Attention\) holds gate, which the family's description",
    )


def test_a_spec_with_another_half_has_no_anatomy(one):
    """The anatomy goes with one attention half: a spec derived from another must not keep it."""
    model = one.model()
    spec = spec_of(one, model)
    assert dataclasses.replace(spec, notes="").anatomy is spec.anatomy
    other = dataclasses.replace(spec, attend=lambda *given: spec.attend(*given), family="mine")
    assert other.anatomy is None
    refused(one, model, "tomecore has no anatomy of the attention of mine", other)
    x, _ = inputs(one, model)
    with pytest.raises(UnsupportedModelError, match="no anatomy of the attention of mine"):
        class_attention(
            one.fw.tome.HOST,
            other,
            one.blocks(model)[0],
            one.fw.tensor(x),
            None,
            {},
        )
