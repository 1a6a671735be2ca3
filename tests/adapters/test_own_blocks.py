"""Blocks of the user's own: described by a registered spec, or recognised by structure and tested."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import tomecore.adapters.torch as tome
import tomecore.models.torch as own
from adapters.cases import TINY
from tomecore.adapters import Anatomy, Spec, Trim
from tomecore.errors import ArgumentTypeError, UnsupportedModelError

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_block.py"


@pytest.fixture
def registered():
    """Forget afterwards what a test registered."""
    yield tome.HOST.registered
    tome.HOST.registered.clear()


def test_the_example(registered, capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert "r = 0 changes nothing: True" in said
    assert "[57, 49, 41, 33, 25, 17]" in said
    assert [spec.family for spec in registered] == ["MyViT"]


def test_registering_again_replaces(registered):
    names = runpy.run_path(str(EXAMPLE))
    first = names["SPEC"]
    tome.register(first)
    tome.register(copy.copy(first))
    assert len(registered) == 1
    assert registered[0] is not first
    model = tome.apply_patch(names["MyViT"](), r=4)
    model(torch.randn(1, 3, 32, 32))
    assert model.tome.tokens == [61, 57, 53, 49, 45, 41]


def test_what_is_no_spec():
    with pytest.raises(
        ArgumentTypeError, match=r"`spec` must be a tomecore\.adapters\.Spec; got builtins\.dict"
    ):
        tome.register({"family": "mine"})


@pytest.mark.parametrize("cls", [Spec, Anatomy, Trim])
def test_every_field_is_described_and_in_the_order_of_the_definition(cls):
    fields = [field.name for field in dataclasses.fields(cls)]
    described = re.findall(r"^ {8}(\w+): ", cls.__doc__, re.MULTILINE)
    assert described == fields
    if cls is Spec:  # and is in one of its groups
        groups = cls.__doc__.partition("The fields, in this order")[2].partition("Args:")[0]
        assert re.findall(r"``(\w+)``", groups) == fields


def test_a_spec_may_name_classes_themselves():
    spec = Spec("mine", (nn.Linear,), {nn.Sequential: "x"}, {"a": (nn.ReLU, "*")}, len, len, len)
    assert spec.blocks == ("torch.nn.modules.linear.Linear",)
    assert spec.towers == {"torch.nn.modules.container.Sequential": "x"}
    assert spec.children == {"a": ("torch.nn.modules.activation.ReLU", "*")}


# ---- recognised by structure


class Rewritten(own.Block):
    """The forward of a pre-norm block, written again by a user."""

    def forward(self, x):
        y = self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = y + x
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x)))) + x


class PostNorm(own.Block):
    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Scaled(own.Block):
    def forward(self, x):
        return super().forward(x) * 1.001


class OnlyInTraining(own.Block):
    def forward(self, x):
        x = super().forward(x)
        return x + 0.1 * torch.rand_like(x) if self.training else x


class Windows(own.Block):
    def forward(self, x):
        return torch.cat([super(Windows, self).forward(part) for part in x.split(4, dim=1)], dim=1)


class DeafAttention(own.Attention):
    """Takes a mask and does nothing with it."""

    def forward(self, x, attn_mask=None):
        return super().forward(x)


class BoolAttention(own.Attention):
    """Takes what is not 0 as open."""

    def forward(self, x, attn_mask=None):
        return super().forward(x, None if attn_mask is None else attn_mask != 0)


class Tower(nn.Module):
    """Not a class that any spec knows."""

    def __init__(self, vit):
        super().__init__()
        self.blocks, self.num_prefix_tokens, self.vit = vit.blocks, 1, [vit]

    def forward(self, images):
        x = embedded(self.vit[0], images)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


def embedded(vit, images):
    caught = []
    hook = vit.norm.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    blocks, vit.blocks = vit.blocks, nn.Sequential()
    vit(images)
    vit.blocks = blocks
    hook.remove()
    return caught[0]


def model_of(block=None, attention=None):
    torch.manual_seed(0)
    model = own.VisionTransformer.from_config(
        {**TINY, "img_size": 32, "depth": 3, "num_classes": 7}
    )
    for one in model.blocks:
        if block is not None:
            one.__class__ = block
        if attention is not None:
            one.attn.__class__ = attention
    return model.double().eval()


@pytest.mark.parametrize("tower", [Tower, lambda vit: vit], ids=["unknown tower", "known tower"])
def test_a_rewritten_block_proves_itself(tower):
    plain, rewritten = tower(model_of()), tower(model_of(Rewritten))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = rewritten(images)
    state = torch.random.get_rng_state()
    tome.apply_patch(rewritten, r=8, trace_source=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    tome.apply_patch(plain, r=8, trace_source=True)
    assert torch.allclose(rewritten(images), plain(images), rtol=0, atol=1e-13)
    assert torch.equal(rewritten.tome.source, plain.tome.source)
    assert "by structure" in repr(rewritten.tome)
    again = pickle.loads(pickle.dumps(rewritten))
    assert torch.equal(again(images), rewritten(images))
    rewritten.r = 0
    assert torch.equal(rewritten(images), before)
    tome.remove_patch(rewritten)
    assert type(rewritten.blocks[0]) is Rewritten


@pytest.mark.parametrize(
    ("block", "attention", "reason"),
    [
        (PostNorm, None, "its two halves do not reproduce its forward"),
        (Scaled, None, "its two halves do not reproduce its forward"),
        (OnlyInTraining, None, "its two halves do not reproduce its forward"),
        (Windows, None, "its two halves do not reproduce its forward"),
        (Rewritten, DeafAttention, "its attention does not add the mask that it gets"),
        (Rewritten, BoolAttention, "its attention does not add the mask that it gets"),
    ],
    ids=["post-norm", "scaled", "training", "windows", "deaf", "bool"],
)
def test_a_block_that_does_something_else_is_refused(block, attention, reason):
    model = Tower(model_of(block, attention))
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match=rf"model\.blocks\[0\] is a .*but {reason}"):
        tome.apply_patch(model)
    assert [type(module) for module in model.modules()] == classes


def test_an_unknown_child_is_refused_before_anything_is_tried():
    model = Tower(model_of(Rewritten))
    model.blocks[2].adapter = nn.Linear(32, 32)
    with pytest.raises(UnsupportedModelError, match=r"blocks\[2\] has a child 'adapter'"):
        tome.apply_patch(model)


def test_a_block_without_numbers_cannot_prove_itself():
    model = Tower(model_of(Rewritten)).to("meta")
    with pytest.raises(UnsupportedModelError, match=r"trying it on a copy failed with"):
        tome.apply_patch(model)


def test_the_shorter_sequence_is_not_handed_to_a_stranger():
    with pytest.raises(UnsupportedModelError, match="how this model pools its tokens is unknown"):
        tome.apply_patch(Tower(model_of(Rewritten)), restore=False)
