"""Situations that an attack on the engine found: what users do with a patched model, and around it."""

from __future__ import annotations

import copy
import functools
import types

import numpy as np
import pytest
import torch

from adapters.cases import OWN, by_name
from tomecore.errors import LostStateError, NoForwardError, UnsupportedModelError

TORCH = by_name(OWN)["torch-plain"]


def grown(model, **members):
    """``model`` with a class of its own that has more methods."""
    model.__class__ = type(type(model).__name__, (type(model),), members)
    return model


def test_passes_outside_of_checkpoints_are_not_waited_for(plain):
    """Evaluation under another r, then a checkpoint that begins before the model."""
    fw, model = plain.fw, plain.patched(r=0)
    for r in range(5):
        model.r = [r, 2 * r]
        model(plain.tensors())
    assert model.tome._config.passes.outstanding._counts == {}
    model.train()
    model.r, images = 6, plain.tensors()
    fw.require_gradient(images)

    def loss(checkpointed):
        region = (
            functools.partial(fw.checkpoint, reentrant=True) if checkpointed else lambda f, x: f(x)
        )
        return (region(lambda x: model(2 * x), images) ** 2).sum()

    expected = fw.gradients(model, lambda: loss(False))
    got = fw.gradients(model, lambda: loss(True))
    assert all(np.allclose(got[name], expected[name], atol=1e-12) for name in expected)


def test_a_checkpoint_of_the_users_own(plain):
    """A differentiable function that computes its region again is seen by its context on the stack."""
    if plain.fw.name != "torch":
        return

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, function, x):
            ctx.function = function
            ctx.save_for_backward(x)
            with torch.no_grad():
                return function(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                torch.autograd.backward(ctx.function(x), gradient)
            return None, x.grad

    model = plain.patched().train()

    def gradients(function):
        total = 0
        for r in (6, 1):
            model.r, x = r, plain.tensors(seed=r).requires_grad_()
            total = total + function(x).square().sum()
        return plain.fw.gradients_of(model, total)

    expected, got = gradients(model), gradients(lambda x: Again.apply(model, x))
    assert all(np.allclose(got[name], expected[name], atol=1e-12) for name in expected)


def test_a_forward_pass_within_a_backward_pass(plain):
    """A gradient hook runs the model: a pass of its own, with the r of now, and results."""
    fw, model = plain.fw, plain.patched(r=8)
    model(plain.tensors())
    model.r = 2
    expected, got = fw.forward(plain.patched(r=2), plain.images(seed=1)), []
    weight = fw.tensor(np.ones(3))
    fw.require_gradient(weight)
    weight.register_hook(lambda gradient: got.append(fw.forward(model, plain.images(seed=1))))
    (weight * 2).sum().backward()
    assert np.array_equal(got[0], expected)
    assert model.tome.tokens == [63, 61, 59, 57]


def test_a_wrapper_that_outlives_the_patch(plain):
    """accelerate and profilers keep the method that they wrap, and put it back into the instance."""
    fw, model = plain.fw, plain.patched(r=8)
    expected = fw.forward(plain.model(), plain.images())
    kept = [block.forward for block in model.blocks]
    features = model.forward_features
    for block, method in zip(model.blocks, kept, strict=True):
        block.forward = functools.partial(method)
    assert fw.forward(model, plain.images()).shape == expected.shape
    assert model.tome.tokens == [57, 49, 41, 33]
    fw.tome.remove_patch(model)
    assert np.array_equal(fw.forward(model, plain.images()), expected)
    for block, method in zip(model.blocks, kept, strict=True):
        block.forward = method
    assert np.array_equal(fw.forward(model, plain.images()), expected)
    assert features(plain.tensors()).shape[1] == 65
    fw.tome.apply_patch(model, r=8)
    model(plain.tensors())
    assert model.tome.tokens == [57, 49, 41, 33]


def test_another_object_of_a_patched_class(plain):
    """type(model)(...), as libraries clone models: it was never patched, and runs as it is."""
    fw, model = plain.fw, plain.patched(r=8)
    new = type(model)(**{**model_sizes(fw), "num_heads": 4})
    new.eval()
    assert fw.forward(fw.double(new), plain.images()).shape[0] == 3
    with pytest.raises(AttributeError):
        new.tome  # noqa: B018
    fw.tome.apply_patch(new, r=4)
    new(plain.tensors())
    assert new.tome.tokens == [61, 57, 53, 49]


def model_sizes(fw):
    classes = {"torch": "num_classes", "paddle": "class_num"}
    return {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, classes[fw.name]: 7}


def test_a_class_that_knows_its_subclasses():
    """A registry by name keeps the user's class; a class that forbids subclasses leaves the model whole."""
    known, model = [], TORCH.model()

    def enter(cls, **kwargs):
        known.append(cls)

    grown(model, __init_subclass__=classmethod(enter))
    TORCH.fw.tome.apply_patch(model, r=8)
    assert known == []
    TORCH.fw.tome.remove_patch(model)

    class Final(type):
        def __new__(mcs, name, bases, members):
            if any(isinstance(base, Final) for base in bases):
                raise TypeError("final")
            return super().__new__(mcs, name, bases, members)

    model.__class__ = Final("Last", (type(model),), {})
    before = TORCH.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match="Last does not allow subclasses"):
        TORCH.fw.tome.apply_patch(model, r=8)
    assert TORCH.fw.fingerprint(model) == before


def test_inner_tokens_among_the_outputs(plain):
    """A model that collects its blocks' outputs would return merged tokens to its caller."""

    def forward_features(self, x):
        out = [self._embed(x)] if hasattr(self, "_embed") else []
        x, tokens = tokens_of(plain, self, x), out
        for block in self.blocks:
            x = block(x)
            tokens.append(x)
        return tokens

    fw = plain.fw
    model = grown(plain.model(), collect=forward_features)
    fw.tome.apply_patch(model, r=8)
    with pytest.raises(LostStateError, match="in one of its outputs"):
        model.collect(plain.tensors())
    with model.tome.all_tokens():
        shapes = [tuple(x.shape) for x in model.collect(plain.tensors())]
    assert shapes == [(3, 65, 32)] * 4


def tokens_of(plain, model, images):
    return plain.fw.tokens(model, plain.fw.numpy(images))


def test_two_streams_in_lock_step(plain):
    """Two images go through each block in sequence, as in siamese towers."""

    def both(self, a, b):
        for block in self.blocks:
            a, b = block(a), block(b)
        return a, b

    fw = plain.fw
    model = grown(plain.model(), both=both)
    fw.tome.apply_patch(model, r=8)
    inputs = [fw.tokens(model, plain.images(seed=seed)) for seed in (0, 1)]
    for x, got in zip(inputs, model.both(*inputs), strict=True):
        for block in model.blocks:
            x = block(x)
        assert np.array_equal(fw.numpy(got), fw.numpy(x))


def test_an_error_of_the_users_own_is_left_alone(plain):
    class Enough(Exception):
        pass

    def leave(*_):
        raise Enough

    model = grown(plain.model(), leave=lambda self, x: [self.blocks[0](x), leave()])
    plain.fw.tome.apply_patch(model, r=8)
    with pytest.raises(Enough):
        model.leave(plain.fw.tokens(model, plain.images()))
    with pytest.raises(NoForwardError, match="raised Enough after 1 blocks"):
        model.tome.tokens  # noqa: B018


def test_a_forward_that_was_replaced_before_the_patch(plain, monkeypatch):
    """The halves replace the library's forward, and not a forward that was put in its place."""
    fw, model = plain.fw, plain.model()

    def other(self, x):
        return x

    paths = {"": type(model.blocks[0])}
    if fw.name == "paddle":
        paths["attn"] = type(model.blocks[0].attn)
    for path, cls in paths.items():
        with monkeypatch.context() as patched:
            patched.setattr(cls, "forward", other)
            with pytest.raises(UnsupportedModelError, match=rf"{path}.* was replaced by .*other"):
                fw.tome.apply_patch(model, r=8)
    fw.tome.apply_patch(model, r=8)


def test_an_attention_that_looks_at_its_mask_and_ignores_it():
    model = TORCH.patched(r=8)

    def forward(self, x, attn_mask=None):
        assert attn_mask is None or attn_mask.dim() == 4
        assert attn_mask is None or attn_mask.is_floating_point()
        return type(self).forward(self, x, None)

    attention = model.blocks[2].attn
    attention.forward = types.MethodType(forward, attention)
    with pytest.raises(UnsupportedModelError, match="ignores the mask"):
        model(TORCH.tensors())


def test_an_attention_that_takes_no_mask_in_the_first_block():
    model = TORCH.patched(r=8)
    attention = model.blocks[0].attn
    attention.forward = types.MethodType(lambda self, x: type(self).forward(self, x), attention)
    with pytest.raises(UnsupportedModelError, match="cannot be called with the sizes"):
        model(TORCH.tensors())


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_prompts_that_come_late_or_are_hidden_by_dropped_patches(plain):
    fw = plain.fw
    more = fw.tensor(np.random.default_rng(5).standard_normal((3, 7, 32)))

    def joined(*parts):
        return (
            torch.cat(parts, 1)
            if fw.name == "torch"
            else __import__("paddle").concat(parts, axis=1)
        )

    def late(self, x):
        x = self.blocks[0](joined(self.cls_token.expand([3, 1, 32]), self.patch_embed(x)))
        x = joined(x[:, :1], more, x[:, 1:])
        for block in list(self.blocks)[1:]:
            x = block(x)
        return x

    def hidden(self, x):
        x = joined(self.cls_token.expand([3, 1, 32]), more, self.patch_embed(x)[:, ::2])
        for block in self.blocks:
            x = block(x)
        return x

    for method, r in ((late, [0, 8, 0, 0]), (hidden, 8)):
        model = grown(plain.model(), forward_features=method)
        fw.tome.apply_patch(model, r=r)
        with pytest.raises(UnsupportedModelError, match="protected="):
            model.forward_features(plain.tensors())


def test_an_embedding_that_was_replaced():
    model = TORCH.patched(r=8)
    old = model.patch_embed
    for new in (TORCH.model().patch_embed, copy.deepcopy(old)):
        model.patch_embed = new
        with pytest.raises(
            UnsupportedModelError, match="was replaced, so it is unknown how many of the 65"
        ):
            model(TORCH.tensors())
    model.patch_embed = torch.nn.Sequential(old)
    model(TORCH.tensors())  # it ran inside the new one
    model.patch_embed = TORCH.model().patch_embed
    TORCH.fw.tome.apply_patch(model, r=8)
    model(TORCH.tensors())
    TORCH.fw.tome.remove_patch(model)
    assert not old._forward_hooks


def test_another_mlp(plain):
    """Put there after the patch: one that treats tokens by themselves has its effect, others are refused."""
    fw, base = (
        plain.fw,
        torch.nn.Module if plain.fw.name == "torch" else __import__("paddle").nn.Layer,
    )

    class Around(base):
        def __init__(self, inner, mixing):
            super().__init__()
            self.inner, self.mixing = inner, mixing

        def forward(self, x):
            y = 2 * self.inner(x)
            return y + y.mean(1, keepdim=True) if self.mixing else y

    model = plain.patched(r=8)
    expected, mlp = fw.forward(model, plain.images()), model.blocks[2].mlp
    model.blocks[2].mlp = Around(mlp, False)
    assert not np.allclose(fw.forward(model, plain.images()), expected)
    model.blocks[2].mlp = Around(mlp, True)
    with pytest.raises(
        UnsupportedModelError, match=r"mlp in blocks\[2\] .* depends on other tokens"
    ):
        fw.forward(model, plain.images())
    model.r = 0
    fw.forward(model, plain.images())
    model.r, model.blocks[2].mlp = 8, mlp
    assert np.array_equal(fw.forward(model, plain.images()), expected)


class Outside(torch.nn.Module):
    """An MLP with something around it that takes only some numbers of tokens."""

    def __init__(self, inner, arrange):
        super().__init__()
        self.inner, self.arrange = inner, arrange

    def forward(self, x):
        return self.inner(x) + self.arrange(x)


def windows(x):
    """Means over windows of 3 tokens: not of 16."""
    return x.unflatten(1, (-1, 3)).mean(2, keepdim=True).expand(-1, -1, 3, -1).flatten(1, 2)


def test_an_mlp_that_does_not_run_with_any_number_of_tokens():
    """65 - 8 = 57 tokens are windows of 3; 16, with which it is tried first, are none."""
    model = TORCH.patched(r=8)
    model.blocks[0].mlp = Outside(model.blocks[0].mlp, windows)
    with pytest.raises(UnsupportedModelError, match=r"mlp in blocks\[0\] .* other tokens"):
        model(TORCH.tensors())


def test_a_layer_that_does_not_run_alone():
    """It takes what an earlier layer of the half noted, so it is tried inside the half."""

    class Norm(torch.nn.Module):
        def __init__(self, inner, noted):
            super().__init__()
            self.inner, self.noted = inner, noted

        def forward(self, x):
            self.noted["x"] = x
            return self.inner(x)

    class Late(torch.nn.Module):
        def __init__(self, inner, noted, mixing):
            super().__init__()
            self.inner, self.noted, self.mixing = inner, noted, mixing

        def forward(self, x):
            seen = self.noted.pop("x")
            return self.inner(x) + (seen.mean(1, keepdim=True) if self.mixing else seen)

    for mixing in (False, True):
        model, noted = TORCH.patched(r=8), {}
        block = model.blocks[1]
        block.norm2, block.mlp = Norm(block.norm2, noted), Late(block.mlp, noted, mixing)
        if not mixing:
            model(TORCH.tensors())
            continue
        with pytest.raises(UnsupportedModelError, match=r"mlp in blocks\[1\] .* other tokens"):
            model(TORCH.tensors())


def test_a_quantised_mlp():
    """It has one scale for all tokens, which does not mix tokens."""
    model = TORCH.patched(r=8).float()
    mlp = torch.ao.quantization.quantize_dynamic(model.blocks[2].mlp, {torch.nn.Linear})
    model.blocks[2].mlp = torch.nn.Sequential(mlp)
    model(TORCH.tensors().float())
    assert model.tome.tokens[2] == 65 - 3 * 8
