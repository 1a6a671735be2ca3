"""Features of torchvision only: torch's MultiheadAttention, whose half is ours, and its other models."""

from __future__ import annotations

import pytest
import torch
import torchvision
from adapters.frameworks import TORCH as FW
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from tomecore.adapters import torch as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import UnsupportedModelError
from vits.of_torchvision import MORE, torchvision_model

PLAIN = MORE[0]


def close(got, expected, error):
    torch.testing.assert_close(
        got, expected, rtol=0, atol=error * float(expected.detach().abs().max())
    )


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_a_published_architecture_by_name():
    model = torchvision.models.get_model("vit_b_32", image_size=64, num_classes=5).eval()
    images = torch.randn(2, 3, 64, 64)
    nn.init.normal_(model.heads.head.weight)
    before = model(images)
    tome.apply_patch(model)
    assert torch.equal(model(images), before)
    model.r = 1
    assert not torch.equal(model(images), before)
    assert model.tome.tokens == [4, 3, *[2] * 10]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_drops_in_training_as_the_module_does(dropout):
    model = FW.prepare(torchvision_model(attention_dropout=dropout)(32, 2)).train()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x = torch.randn(2, 65, 32, dtype=torch.float64)
    FW.seed(0)
    whole = blocks[0](x)
    FW.seed(0)
    y, _ = spec.attend(tome.HOST, blocks[0], x, None, {})
    close(spec.feed(blocks[0], y), whole, 1e-13)
    FW.seed(1)
    assert torch.allclose(blocks[0](x), whole) is (dropout == 0)


def test_the_fused_path_of_inference_and_the_one_with_gradients_agree():
    model, images = PLAIN.patched(r=8).float(), PLAIN.tensors().float()
    with_gradients = model(images)
    with torch.inference_mode():
        close(model(images), with_gradients.detach(), 1e-5)
        model.r = 0
        assert torch.isfinite(model(images)).all()


def counted(module):
    """A list that grows with every call of ``module``, and the hook that lets it."""
    calls = []
    return calls, module.register_forward_hook(lambda *_: calls.append(1))


def test_hooks_on_the_attention_are_refused():
    """It is not called while tokens merge."""
    model, images = PLAIN.model(), PLAIN.tensors()
    attention = model.encoder.layers[1].self_attention
    _, hook = counted(attention)
    with pytest.raises(UnsupportedModelError, match=r"\[1\]\.self_attention has forward hooks"):
        tome.apply_patch(model, r=8)
    hook.remove()
    tome.apply_patch(model, r=8)
    calls, _ = counted(attention)
    with pytest.raises(UnsupportedModelError, match=r"\(MultiheadAttention\) has a forward hook"):
        model(images)
    model.r = 0
    model(images)
    assert len(calls) == 1


@pytest.mark.parametrize(("where", "times"), [("mlp", 1), ("self_attention.out_proj", 0)])
def test_other_hooks_run_as_in_the_original(where, times):
    """MultiheadAttention never calls its out_proj either, but reads its weights."""
    model, images = PLAIN.model(), PLAIN.tensors()
    calls, _ = counted(model.encoder.layers[1].get_submodule(where))
    model(images)
    assert len(calls) == times
    tome.apply_patch(model, r=8)
    model(images)
    assert len(calls) == 2 * times


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch_first": False}, "batch_first=False, and would attend across the images"),
        ({"add_bias_kv": True}, "adds a key and a value to every sequence"),
        ({"add_zero_attn": True}, "adds a key of zeros to every sequence"),
        ({"kdim": 8}, "projects keys or values of another width"),
    ],
    ids=["sequence first", "bias_kv", "zero", "kdim"],
)
def test_other_attentions_are_refused_and_the_model_untouched(arguments, text):
    model = PLAIN.model()
    model.encoder.layers[2].self_attention = nn.MultiheadAttention(
        32, 4, **{"batch_first": True, **arguments}
    )
    before = FW.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=rf"encoder\.layers\[2\]: .*{text}"):
        tome.apply_patch(model)
    assert FW.fingerprint(model) == before


@pytest.mark.parametrize(
    ("name", "text"),
    [("swin_t", "has a window_size"), ("resnet18", "holds no vision transformer that tomecore")],
)
def test_other_models_are_refused(name, text):
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(torchvision.models.get_model(name))


def test_a_traced_copy_holds_no_tower():
    model = create_feature_extractor(PLAIN.model(), ["encoder.ln"])
    with pytest.raises(UnsupportedModelError, match="holds no vision transformer that tomecore"):
        tome.apply_patch(model)


@torch.no_grad()
def test_without_restore_the_class_token_is_the_same():
    images = PLAIN.tensors()
    expected = PLAIN.patched(r=8)(images)
    model = PLAIN.patched(r=8, restore=False)
    close(model(images), expected, 1e-12)
    assert model.encoder(torch.randn(1, 65, 32, dtype=torch.float64)).shape == (1, 33, 32)


@torch.no_grad()
def test_compiled():
    model, images = PLAIN.patched(depth=2, r=8), PLAIN.tensors()
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(images), expected, 1e-12)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@torch.no_grad()
def test_half_weights_and_autocast():
    model, images = PLAIN.patched(r=16), PLAIN.tensors()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.float()(images.float())
    half = model.bfloat16()(images.bfloat16())
    for output in (mixed, half):
        assert output.isfinite().all()
        assert output.shape == exact.shape
    assert model.tome.sizes.sum(1).tolist() == [65] * 3
