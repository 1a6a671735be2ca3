"""LoRA of peft, put on a model after the patch: it has its effect and learns, or is refused by name."""

from __future__ import annotations

import peft
import pytest
import torch
from vits.cases import case_named

import tomecore.adapters.torch as tome
from tomecore.errors import UnsupportedModelError

#: kind of model -> layers that its halves call as modules
CALLED = {
    "timm-plain": ["qkv", "proj"],
    "dinov2-plain": ["qkv", "proj"],
    "open_clip-plain": ["c_fc"],
    "torchvision-plain": ["mlp.0"],
}
#: the attention that the halves bypass
BYPASSED = {"open_clip-plain": "attn", "torchvision-plain": "self_attention"}


@pytest.mark.parametrize(("name", "layers"), CALLED.items(), ids=CALLED)
def test_on_layers_that_are_called(name, layers):
    case = case_named(name)
    model, x = case.patched(r=8), case.tensors(2)
    before = model(x)
    config = peft.LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).double()
    after = adapted(x)
    assert not torch.allclose(after, before)
    after.square().sum().backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    assert gradients
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(x), before)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(x), after)
    tome.remove_patch(merged)


@pytest.mark.parametrize(("name", "attention"), BYPASSED.items(), ids=BYPASSED)
def test_on_an_attention_that_is_bypassed(name, attention):
    case = case_named(name)
    model, x = case.patched(r=8), case.tensors(2)
    before = model(x)
    paths = [path for path, _ in model.named_modules() if path.endswith(f".{attention}")]
    config = peft.LoraConfig(r=4, target_modules=paths, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).double().eval()
    with pytest.raises(
        UnsupportedModelError, match=rf"{attention} .* was replaced after apply_patch"
    ):
        adapted(x)
    model.r = 0
    assert not torch.allclose(adapted(x), before)
    merged = adapted.merge_and_unload()
    merged.r = 8
    assert not torch.allclose(merged(x), before)
    assert merged.tome.tokens == [57, 49, 41, 33]
