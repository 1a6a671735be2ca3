"""A model that changes after the patch: the change is reported or followed, never silently wrong."""

from __future__ import annotations

import copy
import functools
import io

import numpy as np
import pytest
import torch
from torch import nn

import tomecore.adapters.torch as tome
from tomecore.errors import LostStateError, UnsupportedModelError
from tomecore.frameworks import evaluating
from tomecore.models.torch import VisionTransformer

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(num_classes=7, **TINY).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("path", ["", "attn"])
def test_a_forward_of_the_instance_is_refused(plain, path):
    """accelerate's hooks and many monkeypatches look like this."""
    model = plain.model()
    block = model.blocks[1]
    module = getattr(block, path) if path else block
    if path and plain.fw.name == "torch":
        return_value = plain.fw.forward(model, plain.images())  # called as a module: fine
        module.forward = functools.partial(module.forward)
        plain.fw.tome.apply_patch(model, r=0)
        assert np.array_equal(plain.fw.forward(model, plain.images()), return_value)
        return
    module.forward = module.forward  # the class's own, as tools leave it there
    plain.fw.tome.remove_patch(plain.fw.tome.apply_patch(model))
    module.forward = functools.partial(module.forward)
    with pytest.raises(UnsupportedModelError, match=r"blocks\[1\].* has a forward on the instance"):
        plain.fw.tome.apply_patch(model)
    assert "_tome" not in vars(model.blocks[0])


@pytest.mark.parametrize("index", [1, 3])
def test_a_block_replaced_after_the_patch(plain, index):
    model = plain.patched(r=8)
    model.blocks[index] = plain.model().blocks[0]
    with pytest.raises(LostStateError, match=rf"block {index} was replaced by a Block"):
        plain.fw.forward(model, plain.images())


def test_blocks_lost_after_the_patch_are_noticed_by_the_compiler_too(model, images):
    tome.apply_patch(model, r=8)
    model.blocks = model.blocks[:3]
    compiled = torch.compile(model.forward_features, backend="eager")
    with pytest.raises(Exception, match="3 blocks, but had 4"):
        compiled(images)


def test_a_wrapper_around_a_patched_block_is_fine(model, images):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    tome.apply_patch(model, r=8)
    expected = model(images)
    model.blocks[2] = Wrapper(model.blocks[2])
    assert torch.equal(model(images), expected)


def test_pooling_changed_after_restore_was_switched_off(model, images):
    tome.apply_patch(model, r=8, restore=False)
    model(images)
    model.global_pool = "avg"
    with pytest.raises(
        UnsupportedModelError, match=r"restore=False would give wrong results.*'avg'"
    ):
        model(images)


def test_a_schedule_that_is_a_module_stays_a_schedule(model, images):
    class Early(nn.Module):
        def forward(self, num_layers, num_tokens, protected):
            return [num_tokens // 4]

    tome.apply_patch(model)
    keys = list(model.state_dict())
    schedule = Early()
    model.r = schedule
    model(images)
    assert model.r is schedule
    assert model.tome.tokens == [49, 49, 49, 49]
    assert list(model.state_dict()) == keys
    assert "r" not in model._modules


def test_the_list_that_r_was_set_to_is_not_shared(model, images):
    given = [0, 0, 4]
    tome.apply_patch(model, r=given)
    given[0] = 8
    model.r[0] = 8
    model(images)
    assert model.r == [0, 0, 4]
    assert model.tome.tokens == [65, 65, 61, 61]


def test_a_saved_activation_takes_nothing_along(model, images):
    tome.apply_patch(model, r=8)
    kept = []
    model.blocks[1].register_forward_hook(lambda module, args, output: kept.append(output.detach()))
    model.blocks[1].register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(images)
    assert hasattr(kept[1], "_tome_state")
    file = io.BytesIO()
    torch.save(kept[1], file)
    assert len(file.getvalue()) < 2 * kept[1].numel() * 4
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), kept[1])
    assert not copy.deepcopy(kept[1])._tome_state


def test_no_key_is_kept_when_nothing_merges(model, images):
    tome.apply_patch(model)
    model(images)
    assert not torch.is_tensor(tome.HOST.captured_keys.get(False))


def test_masked_autoencoders_attend_plainly_by_default(model):
    class MAEVisionTransformer(VisionTransformer):
        pass

    assert tome.apply_patch(model).tome.prop_attn
    mae = MAEVisionTransformer(num_classes=7, **TINY)
    assert not tome.apply_patch(mae).tome.prop_attn
    assert tome.apply_patch(mae, prop_attn=True).tome.prop_attn


def test_evaluating_puts_every_mode_back(model):
    model.train()
    model.norm.eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not model.norm.training
    assert model.blocks[0].training
