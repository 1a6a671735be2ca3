"""PyTorch only: wrappers, compilers, autocast, half precision, function transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from adapters.cases import OWN, by_name
from tomecore import bipartite_soft_matching
from tomecore.adapters import torch as tome
from tomecore.errors import NoForwardError, UnsupportedModelError

PLAIN = by_name(OWN)["torch-plain"]


@pytest.fixture
def model():
    return PLAIN.patched(r=8)


@pytest.fixture
def images():
    return PLAIN.tensors()


@pytest.fixture(scope="module")
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def wrappers():
    return {
        "DataParallel": (nn.DataParallel, "module"),
        "DistributedDataParallel": (nn.parallel.DistributedDataParallel, "module"),
        "OptimizedModule": (lambda m: torch.compile(m, backend="eager"), "_orig_mod"),
    }


@pytest.mark.parametrize("name", wrappers())
def test_wrappers_are_refused_and_name_the_inner_model(process_group, name):
    wrap, inner = wrappers()[name]
    model = PLAIN.model()
    wrapped = wrap(model)
    before = PLAIN.fw.fingerprint(model)
    text = rf"wrapped in {name}: .*apply_patch\(model\.{inner}\), then set model\.{inner}\.r"
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(wrapped, r=8)
    assert PLAIN.fw.fingerprint(model) == before
    tome.apply_patch(getattr(wrapped, inner), r=8)
    assert model.r == 8


def test_a_patched_model_trains_under_ddp(process_group, model, images):
    model.train()
    expected = PLAIN.fw.gradients(model, lambda: model(images).square().sum())
    wrapped = nn.parallel.DistributedDataParallel(model)
    got = PLAIN.fw.gradients(model, lambda: wrapped(images).square().sum())
    for name, gradient in expected.items():
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=1e-12)


def test_a_class_changed_since_is_not_overwritten(model, images):
    output = model(images)
    parametrize.register_parametrization(model, "pos_embed", nn.Identity())
    text = r"the class of a patched \w*VisionTransformer was changed after apply_patch"
    for function in (tome.remove_patch, tome.apply_patch):
        with pytest.raises(UnsupportedModelError, match=text):
            function(model)
    assert torch.equal(model(images), output)
    parametrize.remove_parametrizations(model, "pos_embed")
    tome.remove_patch(model)
    assert "_tome" not in vars(model)


def test_an_attention_replaced_since_is_an_error(model, images):
    model.blocks[1].attn.k_norm = nn.Identity()
    text = "attended without calling 'attn.k_norm'.* remove_patch, then apply_patch again"
    with pytest.raises(UnsupportedModelError, match=text):
        model(images)


@pytest.mark.parametrize(
    "give", [lambda m: {"attn_mask": m}, lambda m: (m,)], ids=["keyword", "positional"]
)
def test_a_mask_over_all_tokens_is_refused_while_merging(model, images, give):
    x = PLAIN.fw.tokens(model, images.numpy())
    given = give(torch.ones(65, 65, dtype=torch.bool).tril())
    args, kwargs = (given, {}) if isinstance(given, tuple) else ((), given)
    with pytest.raises(
        UnsupportedModelError,
        match=r"attn_mask of shape \(65, 65\) .* describes single pairs of tokens",
    ):
        model.blocks[0](x, *args, **kwargs)
    model.r = 0
    masked = model.blocks[0](x, *args, **kwargs)
    tome.remove_patch(model)
    assert torch.equal(masked, model.blocks[0](x, *args, **kwargs))


@pytest.mark.graph
@pytest.mark.parametrize(
    "settings", [{"trim_last": True}, {"prop_attn": "column"}, {"restore": False}], ids=str
)
def test_compiled_with_other_settings(images, settings):
    model = PLAIN.patched(depth=3, r=8, **settings)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), expected)
    torch.compiler.reset()


@pytest.mark.graph
def test_compiled_whole(images):
    """One graph without breaks; it keeps no results, and says so."""
    model = PLAIN.patched(depth=2, r=8)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images), expected)
        with pytest.raises(NoForwardError, match="ran as a compiled or exported graph"):
            model.tome.sizes  # noqa: B018
        model.r = 4
        assert torch.equal(compiled(images), PLAIN.patched(depth=2, r=4)(images))
        model(images)
    assert model.tome.tokens == [61, 57]
    torch.compiler.reset()


@pytest.mark.graph
def test_compiled_training(images):
    model = PLAIN.patched(depth=2, r=8)
    model.train()
    expected = PLAIN.fw.gradients(model, lambda: model(images).square().sum())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = PLAIN.fw.gradients(model, lambda: compiled(images).square().sum())
    for name, gradient in expected.items():
        limit = 1e-12 * np.abs(gradient).max()
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=limit, err_msg=name)
    torch.compiler.reset()


@pytest.mark.graph
def test_compiled_block_by_block(model, images):
    """Eager and compiled blocks pass the sizes to each other."""
    with torch.no_grad():
        expected = model(images)
        for block in list(model.blocks)[1:3]:
            block.compile(fullgraph=True, backend="eager")
        assert torch.equal(model(images), expected)
    torch.compiler.reset()


@pytest.mark.graph
def test_exported_with_a_dynamic_batch(images):
    model = PLAIN.patched(depth=2, r=8)
    expected = model(images).detach()
    batch = {0: torch.export.Dim("batch", min=2, max=16)}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,), strict=False)
    for n in (2, 3):
        torch.testing.assert_close(
            program.module()(images[:n]).detach(), expected[:n], rtol=0, atol=1e-11
        )


def test_function_transforms(model, images):
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, images):
        return torch.func.functional_call(model, parameters, (images,)).square().sum()

    got = torch.func.grad(loss)(parameters, images)
    expected = PLAIN.fw.gradients(model, lambda: model(images).square().sum())
    for name, gradient in expected.items():
        limit = 1e-12 * np.abs(gradient).max()
        np.testing.assert_allclose(got[name].numpy(), gradient, rtol=0, atol=limit)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_count_exactly(images, dtype):
    model = PLAIN.patched(r=16, trace_source=True).to(dtype)
    with torch.no_grad():
        output = model(images.to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()
    assert model.tome.sizes.dtype == torch.float32
    assert model.tome.tokens == [49, 33, 17, 9]
    counts = [torch.bincount(slots, minlength=9) for slots in model.tome.source]
    assert torch.equal(model.tome.sizes, torch.stack(counts).float())


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_bfloat16_counts_past_256():
    """In bfloat16 itself 256 + 1 is 256; and its logarithm is taken of the exact number."""
    fw = PLAIN.fw
    model = fw.prepare(PLAIN.build(img_size=96, depth=8))
    tome.apply_patch(model.bfloat16(), r=1000)
    with torch.no_grad():
        model(PLAIN.tensors(2, size=96).bfloat16())
    assert model.tome.sizes.max() > 256
    assert model.tome.sizes.sum(dim=1).tolist() == [577.0, 577.0]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_autocast(training):
    model, images = PLAIN.patched(r=8, trace_source=True).float(), PLAIN.tensors().float()
    model.train(training)
    full = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    assert output.dtype == torch.bfloat16
    assert (output.float() - full).abs().max() < 0.2 * full.abs().max()
    assert model.tome.sizes.sum(dim=1).tolist() == [65.0] * 3
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_similarities_under_autocast_are_float32(compiled):
    """Rounded to bfloat16, hundreds of pairs of these would be equally similar."""
    keys = torch.randn(2, 197, 16, generator=torch.Generator().manual_seed(0))

    def match(keys):
        plan = bipartite_soft_matching(keys, 60, protected=1)
        return plan.merged, plan.into

    expected = match(keys)
    if compiled:
        match = torch.compile(match, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match(keys)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_shapes_on_a_device_that_autocast_does_not_know():
    plan = bipartite_soft_matching(torch.empty(2, 17, 8, device="meta"), 4, protected=1)
    assert plan.merged.shape == (2, 4)
    assert plan.merged.device.type == "meta"


def test_the_recomputation_flag_of_torch():
    """Not public in torch, and what checkpointing rests on: -1 exactly outside a backward pass.

    A recomputation is one within the backward of a differentiable function; a hook may begin other passes.
    """
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append((torch._C._current_graph_task_id(), tome.HOST.recomputing()))
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append((torch._C._current_graph_task_id(), tome.HOST.recomputing()))
            return gradient

    x = torch.ones(1, requires_grad=True)
    y = Look.apply(x)
    assert not tome.HOST.recomputing()
    y.register_hook(lambda gradient: seen.append(tome.HOST.recomputing()))
    y.backward()
    assert seen[0] == (-1, False)
    assert seen[1] is False
    assert seen[2] == (seen[2][0], True)
    assert seen[2][0] != -1


@pytest.mark.parametrize("layer", ["norm1", "attn.qkv", "attn.k_norm", "mlp"])
def test_another_thread_that_compiles_is_not_noticed(monkeypatch, layer):
    """While it does, torch says that it is compiling, to all threads; here from inside a block on."""
    case = by_name(OWN)["torch-plain"]
    model, images = case.patched(r=8, trace_source=True), case.tensors()
    with torch.no_grad():
        expected = model(images)
        source = model.tome.source
    module = model.blocks[1].get_submodule(layer)
    seen = []

    def compile_elsewhere(*_):
        monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
        seen.append(torch.compiler.is_compiling())

    handle = module.register_forward_pre_hook(compile_elsewhere)
    with torch.no_grad():
        assert torch.equal(model(images), expected)
        assert torch.equal(model(images), expected)
    handle.remove()
    assert seen == [True, True]
    assert torch.equal(model.tome.source, source)
