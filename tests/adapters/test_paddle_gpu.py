"""The arguments of Paddle's attention on a GPU, checked by Paddle's selector and its kernels' rules."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle
import pytest
from paddle.nn.functional import sdpa

from adapters.paddle_gpu import CARDS, InvalidArgument, gpu
from tomecore.adapters import paddle as tome
from tomecore.adapters.hosts import paddle_attention as forms
from tomecore.models.paddle import VisionTransformer

DTYPES = ["float32", "float16", "bfloat16"]
#: largest difference, relative to the largest number
LIMITS = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}
#: from 197 tokens its layers attend 197, 192, 184, 181, 168 and 128
LIST = [5, 8, 3, 13, 40, 0]
ATTENDED = [192, 184, 181, 168, 128]

card_of = pytest.mark.parametrize("card", CARDS, ids=str)
batch_of = pytest.mark.parametrize("batch", [1, 3])


@pytest.fixture(scope="module")
def model():
    paddle.seed(0)
    sizes = {"img_size": 112, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": len(LIST)}
    model = VisionTransformer(**sizes, class_num=7, qkv_bias=True)
    for parameter in model.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.2)
    model.eval()
    return tome.apply_patch(model, r=LIST, trace_source=True)


def operands(tokens, rows, batch, dtype, width=16):
    paddle.seed(tokens)
    q, k, v = (paddle.randn([batch, n, 2, width]).astype(dtype) for n in (rows, tokens, tokens))
    bias = paddle.log(paddle.randint(1, 30, [batch, tokens]).astype("float32")).unsqueeze([1, 2])
    return q, k, v, bias.astype(dtype)


def exactly(q, k, v, bias, scale):
    """In float64, from what was rounded to the dtype of the operands."""
    q, k, v, bias = (t.astype("float32").numpy().astype("float64") for t in (q, k, v, bias))
    q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * scale + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def near(got, expected, limit):
    got = got.astype("float32").numpy()
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= limit * np.abs(expected).max()


def expected_kernel(card, dtype):
    """Half precision has the flash kernel from sm_80; everything else must keep the fused one."""
    return "flash_attn" if dtype != "float32" and card >= (8, 0) else "mem_efficient"


@card_of
@batch_of
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [16**-0.5, 0.2])
@pytest.mark.parametrize("tokens", [*ATTENDED, 9])
def test_sizes_reach_the_kernel_of_the_unpatched_model(tokens, scale, dtype, batch, card):
    given = operands(tokens, tokens, batch, dtype)
    with gpu(card) as chosen:
        out = tome.HOST.attention(*given, dropout=0.0, scale=scale)
    assert chosen == [expected_kernel(card, dtype)]
    assert out.dtype == given[0].dtype
    near(out, exactly(*given, scale=scale), LIMITS[dtype])


@card_of
@batch_of
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("tokens", [181, 184])
def test_queries_of_a_trimmed_block(tokens, rows, dtype, batch, card):
    given = operands(tokens, rows, batch, dtype)
    with gpu(card):
        out = tome.HOST.attention(*given, dropout=0.0, scale=0.3)
    near(out, exactly(*given, scale=0.3), LIMITS[dtype])


@card_of
@batch_of
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["one head", "every head", "shared by the batch", "one row"])
@pytest.mark.parametrize("tokens", [168, 181])
def test_position_biases(tokens, shape, dtype, batch, card):
    q, k, v, sizes = operands(tokens, tokens, batch, dtype)
    samples = 1 if shape == "shared by the batch" else batch
    rows = 1 if shape == "one row" else tokens
    positions = paddle.randn([samples, 1 if shape == "one head" else 2, rows, tokens])
    bias = (positions + sizes.astype("float32")[:samples]).astype(dtype)
    with gpu(card) as chosen:
        out = tome.HOST.attention(q, k, v, bias, dropout=0.0, scale=0.3)
    near(out, exactly(q, k, v, bias, 0.3), LIMITS[dtype])
    if tokens % 8 == 0:
        assert chosen == [expected_kernel(card, dtype)]


@contextlib.contextmanager
def attending_in(dtype, monkeypatch):
    """The models compute in float32, as a CPU must; their attention gets and gives this dtype."""
    attention = type(tome.HOST).attention

    def rounded(host, q, k, v, bias, **named):
        q, k, v, bias = (None if t is None else t.astype(dtype) for t in (q, k, v, bias))
        return attention(host, q, k, v, bias, **named).astype("float32")

    with monkeypatch.context() as patches:
        patches.setattr(type(tome.HOST), "attention", rounded)
        yield


@card_of
@batch_of
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trim_last", [False, True])
def test_a_model_merges_as_on_a_cpu(model, trim_last, dtype, batch, card, monkeypatch):
    """Layers of 192, 184, 181, 168 and 128 tokens: kernels accept all, and no query reads elsewhere."""
    tome.apply_patch(model, r=LIST, trim_last=trim_last)
    paddle.seed(batch)
    images = paddle.randn([batch, 3, 112, 112])
    attended = []
    with paddle.no_grad(), monkeypatch.context() as patches:
        exact = model(images).numpy()
        patches.setitem(forms.FORMS, "mask", recorded(forms.with_mask, attended))
        patches.setitem(forms.FORMS, "full mask", recorded(forms.with_full_mask, attended))
        patches.setitem(forms.FORMS, "padded column", recorded(forms.with_padded_column, attended))
        with attending_in(dtype, monkeypatch), gpu(card) as chosen:
            got = model(images)
    assert model.tome.tokens[:5] == ATTENDED
    assert attended == ATTENDED
    assert chosen[1:-1] == [expected_kernel(card, dtype)] * 4
    near(got, exact, {"float32": 1e-4, "float16": 3e-2, "bfloat16": 2e-1}[dtype])


@pytest.mark.graph
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_static_graph_is_traced_for_paddle_s_current_device(model, on_gpu, monkeypatch):
    """Values have no place there. Its numbers are those of a CPU, which can only run the math kernel."""
    paddle.seed(0)
    r = [5, 8, 3, 0, 0, 0]
    tome.apply_patch(model, r=r)
    images, asked = paddle.randn([3, 3, 112, 112]), []
    with paddle.no_grad():
        exact = model(images).numpy()
    math, attend = sdpa._math_attention, paddle.nn.functional.scaled_dot_product_attention

    @paddle.jit.not_to_static
    def noted(q, k, v, attn_mask=None, **named):
        asked.append((q.shape[1:], None if attn_mask is None else attn_mask.shape))
        return attend(q, k, v, attn_mask=attn_mask, **named)

    spec = [paddle.static.InputSpec([None, 3, 112, 112], "float32")]
    device = gpu((8, 0)) if on_gpu else contextlib.nullcontext()
    with device, monkeypatch.context() as patches:
        patches.setattr(sdpa, "_math_attention", math)
        patches.setattr(sdpa, "select_sdp_for_sdpa", lambda _: "math")
        patches.setattr(paddle.nn.functional, "scaled_dot_product_attention", noted)
        program = paddle.jit.to_static(model.forward, input_spec=spec, full_graph=True)
        program.concrete_program  # noqa: B018  (traced now)
    with paddle.no_grad():
        for batch in (3, 1):
            near(program(images[:batch]), exact[:batch], 1e-5)
    rows = (lambda n: n) if on_gpu else (lambda n: 1)
    assert asked[:3] == [
        ([197, 2, 16], None),
        ([192, 2, 16], [-1, 1, rows(192), 192]),
        ([184, 2, 16], [-1, 1, rows(184), 184]),
    ]
    assert asked[3] == (([181, 2, 24], None) if on_gpu else ([181, 2, 16], [-1, 1, 1, 181]))


def recorded(form, attended):
    def attend(q, k, v, bias, *rest):
        if bias is not None:
            attended.append(k.shape[1])
        return form(q, k, v, bias, *rest)

    return attend


@card_of
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [181, 184])
def test_the_emulation_notices_a_mask_of_one_row(tokens, dtype, card):
    """The arguments that tomecore used before: read as other images' sizes, or refused."""
    given = operands(tokens, tokens, 3, dtype)
    with gpu(card) as chosen:
        try:
            out = forms.with_mask(*given, dropout=0.0, scale=0.3).astype("float32").numpy()
        except InvalidArgument:
            assert chosen == ["mem_efficient"]
            assert tokens == 184
            return
    if chosen == ["math"]:  # right, but not the fused kernel
        assert tokens == 181
    else:
        assert chosen == ["flash_attn"]
        assert not np.isfinite(out[2]).all()
        assert (
            np.abs(out[0, :1] - exactly(*given, scale=0.3)[0, :1]).max() < 0.1
        )  # the first row is right


def test_the_emulation_leaves_nothing_behind():
    place = paddle.zeros([1]).place
    with gpu((9, 0)):
        assert not place.is_cpu_place()
    assert place.is_cpu_place()
    assert not place.is_gpu_place()
    assert sdpa._C_ops is paddle._C_ops
