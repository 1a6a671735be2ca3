"""Attention with a bias of keys in bfloat16 on a CPU: by two products, and only if that is requested."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F

import tomecore.adapters.torch as tome
from tomecore.adapters.hosts import torch as torch_host
from tomecore.adapters.hosts import torch_attention as forms
from tomecore.models.torch import VisionTransformer

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """The products serve the small operands of these tests, too."""
    monkeypatch.setattr(forms, "_MANY_SCORES", 1)


def operands(dtype, tokens=9, width=8):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 4, tokens, width, generator=generator, dtype=torch.float32).to(dtype)
    sizes = torch.randint(1, 9, (2, tokens), generator=generator).float()
    return *qkv, sizes


@pytest.mark.parametrize("scale", [None, 0.2])
def test_equals_the_fused_kernel(scale):
    q, k, v, sizes = operands(torch.bfloat16)
    with torch.no_grad():
        bias = tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, q), q)
        assert type(bias) is forms.KeyBias
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    assert type(found) is torch.Tensor
    exact = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), sizes.double().log()[:, None, None], scale=scale
    )
    torch.testing.assert_close(found.double(), exact, rtol=2e-2, atol=2e-2)
    other = F.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), torch.zeros(2, 1, 1, 9).double(), scale=scale
    )
    assert (found - other).abs().max() > 0.1  # the bias matters here


@pytest.mark.parametrize("tokens", [111, 112])
def test_few_scores_go_to_the_kernel(tokens, monkeypatch):
    """Two samples of four heads have 100,000 scores from 112 tokens on."""
    monkeypatch.undo()
    q, k, v, sizes = operands(torch.bfloat16, tokens, width=64)
    used, baddbmm = [], torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: used.append(1) or baddbmm(*a, **k))
    with torch.no_grad():
        x = q.transpose(1, 2).flatten(2)
        bias = tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, x), x)
        assert type(bias) is (forms.KeyBias if tokens == 112 else torch.Tensor)
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        other = bias.as_subclass(forms.KeyBias)  # of narrow heads, which are more than they seem
        F.scaled_dot_product_attention(q, k, v, attn_mask=other)
    assert len(used) == 2 * (tokens == 112)


@pytest.mark.parametrize("given", ["causal", "dropout", "other dtype", "pairs"])
def test_what_it_does_not_know_goes_to_the_kernel(given, monkeypatch):
    q, k, v, sizes = operands(torch.bfloat16)
    monkeypatch.setattr(torch, "baddbmm", None)
    with torch.no_grad():
        bias = tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, q), q)
        if given == "causal":
            with contextlib.suppress(RuntimeError):  # what some versions of torch answer
                F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=True)
            return
        if given == "dropout":
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=0.5)
            return
        if given == "pairs":
            pairs = bias.expand(2, 4, 9, 9).as_subclass(forms.KeyBias)
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)
        else:
            q, k, v = q.float(), k.float(), v.float()
            found = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.float().as_subclass(forms.KeyBias)
            )
        expected = F.scaled_dot_product_attention(
            q, k, v, attn_mask=sizes.log().to(q.dtype)[:, None, None]
        )
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_nothing_computed_with_it_stays_of_its_kind():
    """An eager attention adds it to scores; the result must not affect later attentions."""
    q, k, v, sizes = operands(torch.bfloat16)
    with torch.no_grad():
        bias = tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, q), q)
        scores = q @ k.transpose(-2, -1) + bias
        for found in (
            scores,
            bias + 1,
            bias.float(),
            bias.expand(2, 4, 9, 9),
            scores.softmax(-1) @ v,
        ):
            assert type(found) is torch.Tensor
        for found in (bias[:, :, :, :9], bias.to(torch.bfloat16)):
            assert type(found) is forms.KeyBias
            assert type(F.scaled_dot_product_attention(q, k, v, attn_mask=found)) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_keep_the_fused_kernel(dtype):
    q, *_, sizes = operands(dtype)
    with torch.no_grad():
        assert type(tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, q), q)) is torch.Tensor


def test_with_gradients_the_fused_kernel_stays():
    q, *_, sizes = operands(torch.bfloat16)
    assert type(tome.HOST.with_prop_attn_form(tome.HOST.log_sizes(sizes, q), q)) is torch.Tensor


def test_in_a_model(monkeypatch):
    """Used in every block after the first merge, and as near to the exact outputs as the fused kernel."""
    torch.manual_seed(0)
    model = VisionTransformer(**SMALL).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        exact = tome.apply_patch(copy.deepcopy(model).double(), r=[3])(x.double())
    half = tome.apply_patch(model.bfloat16(), r=[3])
    used = []
    products = forms.attention_by_products

    def counted(*args, **kwargs):
        used.append(1)
        return products(*args, **kwargs)

    monkeypatch.setattr(forms, "attention_by_products", counted)
    with torch.no_grad():
        by_products = half(x.bfloat16()).double()
        assert len(used) == 2
        monkeypatch.setattr(torch_host, "by_products", lambda x: False)
        fused = half(x.bfloat16()).double()
        assert len(used) == 2
    errors = [(found - exact).norm() / exact.norm() for found in (by_products, fused)]
    assert errors[0] < 1.5 * errors[1]
    assert errors[1] < 0.03
