"""Changes that users make to inner modules: adapters, parametrizations, hooks, quantisation, transforms."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic as quantise
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

import tomecore.adapters.torch as tome
from production.models import close, gradients, images, kind_named
from tomecore.errors import UnsupportedModelError


class LoRA(nn.Module):
    """A low-rank adapter around a linear layer, as peft puts it there."""

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for name, shape in {"a": (base.in_features, 2), "b": (2, base.out_features)}.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(0.3 * values))

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b

    def merged(self):
        """The same as one linear layer."""
        linear = copy.deepcopy(self.base)
        with torch.no_grad():
            linear.weight += (self.a @ self.b).T
        return linear


def linears(kind, model):
    """Paths below the model of the linear layers in blocks that the library calls as modules."""
    called, hooks = [], []
    for block in kind.blocks(model):
        for module in block.modules():
            if type(module) is nn.Linear:
                hooks.append(module.register_forward_pre_hook(lambda m, args: called.append(m)))
    model(images(1).to(next(model.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return [path for path, module in model.named_modules() if any(module is m for m in called)]


def replace(model, path, new):
    """Put ``new(module)`` where the module is."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new(model.get_submodule(path)))


def adapted(kind, model, but=()):
    for seed, path in enumerate(linears(kind, model)):
        if not path.endswith(but):
            replace(model, path, lambda module, seed=seed: LoRA(module, seed))
    return model


def with_adapters_merged(model):
    """A plain copy in which each adapter is part of its linear layer."""
    model = tome.remove_patch(copy.deepcopy(model))
    for path, module in [*model.named_modules()]:
        if isinstance(module, LoRA):
            replace(model, path, LoRA.merged)
    return model


KEY_LAYERS = ("k_proj",)  # whose output is the key in some families


@pytest.mark.parametrize("when", ["before", "after"])
def test_low_rank_adapters(kind, when):
    """Right with adapters in the linear layers, put there before or after patching; and they train."""
    model, x = kind.model(), images()
    if when == "before":
        tome.apply_patch(adapted(kind, model), r=8)
    else:
        adapted(kind, tome.apply_patch(model, r=8), but=KEY_LAYERS)
    close(model(x), tome.apply_patch(with_adapters_merged(model), r=8)(x), 1e-11)
    found = gradients(model, model(x).square().sum())
    adapters = [gradient for name, gradient in found.items() if name.endswith((".a", ".b"))]
    assert len(adapters) >= 12
    assert all(gradient.abs().max() > 0 for gradient in adapters)


@pytest.mark.parametrize("name", ["transformers-dinov2", "transformers-clip"])
def test_an_adapter_that_replaces_the_layer_of_the_key(name):
    """Tokens would be matched by keys without the adapter; patching again takes the new ones."""
    kind, x = kind_named(name), images()
    model = adapted(kind, kind.patched(r=8))
    with pytest.raises(
        UnsupportedModelError, match=r"without calling .*k_proj.* apply_patch again"
    ):
        model(x)
    tome.apply_patch(tome.remove_patch(model), r=8)
    close(model(x), tome.apply_patch(with_adapters_merged(model), r=8)(x), 1e-11)


@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrized_weights(kind, when):
    """The function stays the same with weight_norm on every linear layer, and with the patch."""
    x, expected = images(), kind.patched(r=8)(images())
    model = kind.model()
    if when == "after":
        tome.apply_patch(model, r=8)
    for path in linears(kind, model):
        parametrizations.weight_norm(model.get_submodule(path))
    if when == "before":
        tome.apply_patch(model, r=8)
    close(model(x), expected, 1e-11)


def test_a_parametrized_block_is_no_longer_recognised_or_removed(vit):
    """Parametrizing the block itself changes its class: tomecore says so instead of guessing."""

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    model = kind_named("timm-eva").patched(r=8)
    parametrize.register_parametrization(model.blocks[1], "gamma_1", Twice())
    with pytest.raises(UnsupportedModelError, match="was changed after"):
        tome.remove_patch(model)


@torch.no_grad()
def test_hooks_that_only_look(kind):
    """Feature extractors, profilers: in every module, before and after, seeing what is really there."""
    model, x, seen = kind.patched(r=8), images(), []
    expected = model(x)
    bypassed = tuple(f".{path}" for path in model.tome._config.spec.bypasses)
    for name, module in model.named_modules():
        if bypassed and name.endswith(bypassed):
            hook = module.register_forward_hook(lambda *_: None)
            with pytest.raises(UnsupportedModelError, match="does not call; remove the hook"):
                model(x)
            hook.remove()
            continue
        module.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, "in")))
        module.register_forward_hook(lambda m, args, output, name=name: seen.append((name, "out")))
    assert torch.equal(model(x), expected)
    names = {name for name, module in model.named_modules() if module in kind.blocks(model)}
    model(x)
    assert len(names) == 3
    assert {(name, way) for name in names for way in ("in", "out")} <= {*seen}


@torch.no_grad()
def test_hooks_that_change_activations_in_place_or_inside(vit):
    """Steering: what a hook adds inside a block counts; a new tensor between blocks is an error."""
    model, x = vit.patched(r=8), images()
    plain = model(x)
    hook = model.blocks[1].attn.register_forward_hook(lambda m, args, output: output + 1)
    steered = model(x)
    assert not torch.allclose(steered, plain)
    hook.remove()
    hook = model.blocks[1].register_forward_hook(lambda m, args, output: output.add_(0))
    assert torch.equal(model(x), plain)
    hook.remove()


@torch.no_grad()
def test_quantised_linear_layers(kind):
    """Dynamic int8: the same as the unpatched quantised model, and all tokens counted."""
    plain, x = kind.model().float(), images().float()
    names = {*linears(kind, plain)}
    patched = tome.apply_patch(copy.deepcopy(plain))
    for model in (plain, patched):
        quantise(
            model,
            dict.fromkeys(names, torch.ao.quantization.default_dynamic_qconfig),
            inplace=True,
        )
    assert torch.equal(patched(x), plain(x))
    patched.r = 8
    assert patched(x).isfinite().all()
    assert patched.tome.tokens == [kind.num_tokens() - n for n in (8, 16, 24)]
    again = tome.apply_patch(plain, r=8)
    assert torch.equal(patched(x), again(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch, which has no rule
def test_vmap(kind):
    model, x = kind.patched(r=8), images(4)
    close(torch.func.vmap(lambda one: model(one[None])[0])(x), model(x))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_derivatives_of_every_kind(vit):
    """Forward mode, a gradient for each image, products with the Hessian: as finite differences say.
    torch's fused attention on a CPU lacks some derivatives, and says so; its plain one has them."""
    model, x, tangent = vit.patched(r=8).requires_grad_(False), images(2), images(2, seed=1)

    def function(x):
        return model(x).square().sum()

    def slope(f, step=1e-5):
        return (f(x + step * tangent) - f(x - step * tangent)) / (2 * step)

    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(model, (x,), (tangent,))
    with sdpa_kernel(SDPBackend.MATH):
        value, change = torch.func.jvp(model, (x,), (tangent,))
        close(value, model(x))
        close(change, slope(model), 1e-6)
        gradient = torch.func.grad(function)
        close(torch.func.jvp(gradient, (x,), (tangent,))[1], slope(gradient), 1e-6)
    each = torch.func.vmap(torch.func.grad(lambda one: function(one[None])))(x)
    close(each, torch.func.grad(function)(x))
    jacobian = torch.func.jacrev(model)(x[:1])
    close((jacobian[0, :, 0] * tangent[0]).sum((1, 2, 3)), change[0], 1e-11)


def test_many_threads_share_a_model(kind):
    """Without waiting for each other, in inference mode, each with a batch size of its own."""
    model = kind.patched(r=8, trace_source=True)
    every = [images(1 + seed % 3, seed=seed) for seed in range(6)]
    expected = []
    for x in every:
        expected.append((model(x).detach(), model.tome.sizes, model.tome.source))
    got = [[] for _ in every]

    def work(place):
        with torch.inference_mode():
            for _ in range(4):
                got[place].append((model(every[place]), model.tome.sizes, model.tome.source))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(every))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for runs, alone in zip(got, expected, strict=True):
        assert len(runs) == 4
        for run in runs:
            assert all(torch.equal(a, b) for a, b in zip(run, alone, strict=True))
