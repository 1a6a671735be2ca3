"""Half precision, as weights and by autocast: finite, sizes exact, near the full precision."""

from __future__ import annotations

import pytest
import torch

from production.models import images, kind_named

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def counted(model):
    """Sizes from the map of tokens to slots, which contains only integers."""
    source = model.tome.source
    counts = torch.zeros(source.shape[0], model.tome.tokens[-1], dtype=torch.float32)
    return counts.scatter_add_(1, source, torch.ones_like(source, dtype=torch.float32))


@HALVES
@torch.no_grad()
def test_half_weights(kind, dtype):
    """If the decisions agree, merging adds no more error than the precision itself."""
    model, x = kind.patched(r=8, trace_source=True).to(dtype), images(8)
    output = model(x.to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert model.tome.sizes.dtype == torch.float32
    assert torch.equal(model.tome.sizes, counted(model))
    assert model.tome.sizes.sum(1).tolist() == [kind.num_tokens()] * 8
    exact = kind.patched(r=8, trace_source=True)
    expected = exact(x)
    alike = (exact.tome.source == model.tome.source).all(dim=1)
    model.r = 0
    plain = (model(x.to(dtype)) - kind.model()(x)).abs().max()
    if dtype == torch.float16:  # bfloat16 decides differently somewhere in almost every image
        assert alike.any()
        assert (output - expected)[alike].abs().max() < 3 * plain


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@HALVES
@torch.no_grad()
def test_more_than_256_tokens_in_one_group_with_large_activations(dtype):
    """Neither sizes nor means are affected: bfloat16 counts to 256, and float16 overflows at 65504."""
    kind = kind_named("timm-vit")
    model = kind.patched(depth=8, size=96, r=1000, trace_source=True).to(dtype)
    model.patch_embed.proj.weight.mul_(0.01)
    model.pos_embed.zero_()
    model.patch_embed.proj.bias.copy_(torch.linspace(-1, 1, 32).sign() * 500)
    entered, left = [], []
    model.blocks[0].register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    model.blocks[-1].register_forward_hook(lambda module, args, output: left.append(output))
    output = model(images(2, size=96).to(dtype))
    assert entered[0][:, 2:].abs().min() > 490
    assert left[0].isfinite().all()
    assert output.isfinite().all()
    assert model.tome.sizes.max() > 256
    assert torch.equal(model.tome.sizes, counted(model))
    assert model.tome.sizes.sum(1).tolist() == [578, 578]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_autocast(kind, training):
    model, x = kind.patched(r=8, trace_source=True).float().train(training), images().float()
    full = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
        assert torch.equal(model.tome.sizes, counted(model))
    assert output.isfinite().all()
    assert (output.float() - full).abs().max() < 0.2 * full.abs().max()
    assert model.tome.sizes.sum(1).tolist() == [kind.num_tokens()] * 3
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradients_of_large_half_precision_activations(vit):
    """The weights of a merge never exceed 1, so what float16 can hold stays finite backwards too."""
    model = vit.patched(r=16).half().train()
    x = (500 * images()).half().requires_grad_()
    loss = (model(x).float() * 0.01).square().sum()
    loss.backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
