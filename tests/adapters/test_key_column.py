"""``prop_attn="column"``: proportional attention in PyTorch without a mask."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import tomecore.adapters.paddle
import tomecore.adapters.torch as tome
import tomecore.models.paddle
from tomecore.adapters.hosts import torch_attention as forms
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.models.torch import VisionTransformer

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


class Recorded(TorchDispatchMode):
    """The calls of fused kernels."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func):
            self.found.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def operands(width, tokens=9, rows=9, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, n, width, generator=generator, dtype=torch.float64).to(dtype)
        for n in (rows, tokens, tokens)
    )
    return q, k, v, torch.randint(1, 9, (2, tokens), generator=generator).double()


def small_model(seed=0):
    torch.manual_seed(seed)
    model = VisionTransformer(**SMALL).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def used(monkeypatch):
    """Grows by one with each attention by a column."""
    found, by_column = [], forms.attention_by_column

    def counted(*args, **kwargs):
        found.append(1)
        return by_column(*args, **kwargs)

    monkeypatch.setattr(forms, "attention_by_column", counted)
    return found


@pytest.mark.parametrize("rows", [9, 1])
@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("width", [3, 7, 8, 64])
def test_equals_the_mask_and_gives_the_kernel_none(width, scale, rows):
    q, k, v, sizes = operands(width, rows=rows)
    bias = sizes.log()[:, None, None]
    with Recorded() as recorded:
        found = forms.attention_by_column(q, k, v, bias, scale=scale)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    other = F.scaled_dot_product_attention(q, k, v, scale=scale)
    assert (found - other).abs().max() > 0.05  # the sizes matter here
    ((kernel, args, kwargs),) = recorded.found
    assert kernel is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    assert kwargs.get("attn_mask") is None
    assert len(args) < 6
    assert {t.shape[-1] for t in args[:3]} == {(width // 8 + 1) * 8}


def test_half_precision_is_no_worse_than_the_mask():
    q, k, v, sizes = operands(64, tokens=60, rows=60)
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=sizes.log()[:, None, None])
    q, k, v = (t.bfloat16() for t in (q, k, v))
    bias = sizes.log().bfloat16()[:, None, None]
    found = forms.attention_by_column(q, k, v, bias.float())  # autocast leaves activations in full
    assert found.dtype == torch.bfloat16
    by_mask = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    errors = [(out.double() - exact).norm() / exact.norm() for out in (found, by_mask)]
    assert errors[0] < 1.3 * errors[1]
    assert errors[1] < 0.02


@pytest.mark.parametrize("form", [forms.KeyColumn, forms.KeyBias])
def test_called_by_keyword(form):
    """Names as in torch; the products are taken for many scores of bfloat16."""
    q, k, v, sizes = operands(8, tokens=120, rows=120, dtype=torch.bfloat16)
    bias = sizes.log().bfloat16()[:, None, None]
    named = {"query": q, "key": k, "value": v, "dropout_p": 0.0, "is_causal": False, "scale": 0.3}
    found = F.scaled_dot_product_attention(**named, attn_mask=bias.as_subclass(form))
    expected = F.scaled_dot_product_attention(q, k, v, bias.as_subclass(form), scale=0.3)
    assert torch.equal(found, expected)
    by_mask = F.scaled_dot_product_attention(**named, attn_mask=bias)
    assert not torch.equal(found, by_mask)
    torch.testing.assert_close(found, by_mask, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("given", ["causal", "pairs", "no mask"])
def test_what_it_does_not_know_goes_to_the_kernel_as_it_is(given, monkeypatch):
    q, k, v, sizes = operands(8)
    bias = sizes.log()[:, None, None]
    monkeypatch.setattr(forms, "append_column", None)
    if given == "causal":
        found = forms.attention_by_column(q, k, v, is_causal=True)
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    elif given == "pairs":
        pairs = bias.expand(2, 4, 9, 9)
        found = forms.attention_by_column(q, k, v, pairs)
        expected = F.scaled_dot_product_attention(q, k, v, pairs)
    else:
        found = forms.attention_by_column(q, k, v)
        expected = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("settings", [{}, {"restore": False}, {"trim_last": True}], ids=str)
def test_a_model_computes_the_same(settings, used):
    """In each block after the first merge; outputs and gradients."""
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs, gradients = {}, {}
    for form in (True, "column", False):
        model = tome.apply_patch(small_model(), r=3, prop_attn=form, **settings)
        used.clear()
        outputs[form] = model(x)
        assert len(used) == (2 if form == "column" else 0)
        outputs[form].pow(2).sum().backward()
        gradients[form] = torch.cat([p.grad.flatten() for p in model.parameters()])
    for found in (outputs, gradients):
        torch.testing.assert_close(found["column"], found[True], rtol=1e-11, atol=1e-11)
        assert (found[False] - found[True]).abs().max() > 1e-4


def test_the_setting_is_kept_and_replaced(used):
    model = tome.apply_patch(small_model(), r=3, prop_attn="column")
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        used.clear()
        same(x)
        assert len(used) == 2
        assert same.tome.prop_attn == "column"
        assert "prop_attn=column" in repr(same.tome)
    used.clear()
    tome.apply_patch(model)(x)
    assert not used
    assert model.tome.prop_attn is True


def test_what_does_not_follow_a_form_gets_the_mask(used):
    """Tracers without Dynamo know no subclass of tensors; with it, see test_compile.py."""
    model = tome.apply_patch(small_model(), r=3, prop_attn="column").requires_grad_(False)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    graph = make_fx(model)(x)
    exported = torch.export.export(model, (x,)).module()
    assert not used
    expected = model(x)
    assert len(used) == 2
    for traced in (graph, exported):
        torch.testing.assert_close(traced(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("value", "error"),
    [("row", ArgumentValueError), (1, ArgumentTypeError), (0.0, ArgumentTypeError)],
    ids=str,
)
def test_another_form_is_refused(value, error):
    model = small_model()
    text = f"`prop_attn` must be True, False or 'column', or None for the family's default; got {value!r}"
    with pytest.raises(error, match=text):
        tome.apply_patch(model, prop_attn=value)
    assert type(model) is VisionTransformer


@pytest.mark.parametrize(
    ("value", "error"), [("column", ArgumentValueError), (1, ArgumentTypeError)], ids=str
)
def test_paddle_takes_its_fastest_form_by_itself(value, error):
    model = tomecore.models.paddle.VisionTransformer(**SMALL)
    text = f"`prop_attn` must be True, False, or None for the family's default; got {value!r}"
    if value == "column":
        text += (
            r"\. Forms can be chosen only in PyTorch; in this framework True uses the fastest one"
        )
    with pytest.raises(error, match=text + "$"):
        tomecore.adapters.paddle.apply_patch(model, prop_attn=value)
    assert type(model) is tomecore.models.paddle.VisionTransformer


@pytest.mark.parametrize(
    ("tokens", "dtype", "capability", "unsafe"),
    [
        (64, torch.bfloat16, (9, 0), True),
        (192, torch.float16, (10, 0), True),
        (128, torch.bfloat16, (9, 0), False),
        (65, torch.bfloat16, (9, 0), False),
        (64, torch.float32, (9, 0), False),
        (64, torch.bfloat16, (8, 0), False),
        (64, torch.bfloat16, (12, 0), False),
    ],
)
def test_a_mask_with_which_cudnn_may_return_nan_becomes_a_column(
    monkeypatch, tokens, dtype, capability, unsafe
):
    """Nothing runs on a GPU here: the bias is a fake tensor of one."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        bias = torch.empty(2, 1, 1, tokens, dtype=dtype, device="cuda")
        assert forms.mask_is_unsafe(bias) == unsafe
        monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
        assert not forms.mask_is_unsafe(bias)
        assert not forms.mask_is_unsafe(torch.empty(2, 1, 1, tokens, dtype=dtype))
        monkeypatch.undo()
    monkeypatch.setattr("tomecore.adapters.hosts.torch.mask_is_unsafe", lambda bias: unsafe)
    bias = torch.zeros(2, 1, 1, tokens)
    found = tome.HOST.with_prop_attn_form(bias, torch.empty(2, tokens, 8))
    assert isinstance(found, forms.KeyColumn) == unsafe
