"""Features of transformers only: recorded outputs, outer models, its kernels, padding, checkpoints."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from adapters.frameworks import TORCH as FW
from adapters.laws.exactness import both_halves, through, twins
from adapters.test_gradients import assert_same
from torch import nn

from tomecore.adapters import torch as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.swap import original_class
from tomecore.errors import UnsupportedModelError
from vits.of_transformers import MORE, SINGLE, with_paired_positions

CASES = {case.name.removeprefix("transformers-"): case for case in [*MORE, *SINGLE]}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
#: one of each spec
KINDS = [
    "vit",
    "dinov2-registers",
    "dinov3",
    "clip",
    "siglip2",
    "beit",
    "videomae",
    "blip",
    "internvl",
]
each_kind = pytest.mark.parametrize("case", [CASES[name] for name in KINDS], ids=KINDS)


def close(got, expected, error=1e-11):
    torch.testing.assert_close(got, expected, rtol=0, atol=error * float(expected.abs().max()))


def ask(reader, images, **arguments):
    """(the tensor that counts, everything the model returned)."""
    returned = []
    always, reader.always = reader.always, arguments
    hook = reader.model.register_forward_hook(
        lambda module, args, out: returned.append(out) or None
    )
    try:
        tensor = reader(images)
    finally:
        hook.remove()
        reader.always = always
    return tensor, returned[0]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
class TestSinglePrecision:
    """The laws, for what computes in float32 whatever its weights."""

    def test_r_zero_is_the_original(self, case):
        model, images = case.model(), case.images()
        before = FW.forward(model, images)
        tome.apply_patch(model, r=8)
        assert not np.allclose(FW.forward(model, images), before)
        model.r = 0
        assert np.array_equal(FW.forward(model, images), before)

    def test_the_halves_are_the_layers_own_forward(self, case):
        model = case.model()
        spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
        x = torch.randn(2, case.num_tokens(), 32, dtype=torch.float64)
        for block in blocks:
            given = case.arguments(model, x)
            halves = both_halves(FW, spec, block, x, given)
            whole = block(x, **given)
            assert torch.equal(halves, whole[0] if isinstance(whole, tuple) else whole)

    def test_merging_twins_changes_nothing(self, case):
        model, tokens = case.model(), twins(case, 32)
        expected = through(case, model, tokens)
        tome.apply_patch(model, r=[0, 32], prop_attn=True)
        np.testing.assert_allclose(through(case, model, tokens), expected, rtol=0, atol=1e-4)
        assert model.tome.tokens[-1] == case.prefix + 32


@each_case
@torch.no_grad()
def test_hidden_states_are_those_of_all_tokens(case):
    """L + 1 entries of N tokens, the numbers of the ``all_tokens`` mode, and nothing else changes."""
    model, images, layers = case.patched(r=8, trace_source=True), case.tensors(2), []
    expected = model(images)
    hooks = [
        block.register_forward_hook(lambda module, args, y: layers.append(y) or None)
        for block in case.blocks(model)
    ]
    with model.tome.all_tokens():
        model(images)
    for hook in hooks:
        hook.remove()
    got, out = ask(model, images, output_hidden_states=True)
    close(got, expected)
    assert len(out.hidden_states) == 5
    assert out.hidden_states[0].shape == (2, case.num_tokens(), 32)
    for state, layer in zip(out.hidden_states[1:], layers, strict=True):
        assert torch.equal(state, layer)
    assert model.tome.tokens == [case.num_tokens() - 8 * n for n in (1, 2, 3, 4)]
    assert torch.equal(model(images), expected)
    model.r = 0
    unmerged, out = ask(model, images, output_hidden_states=True)
    tome.remove_patch(model)
    plain, wanted = ask(model, images, output_hidden_states=True)
    assert torch.equal(unmerged, plain)
    for state, want in zip(out.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(state, want)


@pytest.mark.parametrize("case", [c for c in CASES.values() if not c.pooled], ids=lambda c: c.name)
@torch.no_grad()
def test_without_restore_recorded_states_are_refused(case):
    """They have all tokens, so restore=False would silently have no effect."""
    model, images = case.patched(r=8, trace_source=True), case.tensors(2)
    _, whole = ask(model, images)
    tome.apply_patch(model, restore=False)
    _, short = ask(model, images)
    if "last_hidden_state" in short:
        assert short.last_hidden_state.shape[1] == case.num_tokens() - 32
        close(model.tome.unmerge(short.last_hidden_state), whole.last_hidden_state)
    with pytest.raises(UnsupportedModelError, match="restore=False has no effect while hidden"):
        ask(model, images, output_hidden_states=True)
    model.r = 0
    _, recording = ask(model, images, output_hidden_states=True)
    lengths = [state.shape[1] for state in recording.hidden_states]
    assert lengths == [case.num_tokens()] * 5


POOLING = {
    "dinov2": r"Dinov2ForImageClassification pools over tokens, and would count a merged token once",
    "dinov2-registers": "Dinov2WithRegistersForImageClassification pools over tokens",
    "ijepa": "IJepaForImageClassification pools over tokens",
    "siglip": r"SiglipMultiheadAttentionPoolingHead pools over tokens",
    "siglip2": r"Siglip2MultiheadAttentionPoolingHead pools over tokens",
    "beit": r"BeitModel pools over tokens",
    "videomae": r"VideoMAEModel pools over tokens",
}


@pytest.mark.parametrize(("name", "text"), POOLING.items(), ids=POOLING)
def test_without_restore_pooling_models_are_refused(name, text):
    model = CASES[name].model()
    with pytest.raises(
        UnsupportedModelError, match=f"restore=False would give wrong results: .*{text}"
    ):
        tome.apply_patch(model, restore=False)


@pytest.mark.parametrize("name", ["vit", "clip", "dinov3", "siglip", "smolvlm", "beit", "internvl"])
@torch.no_grad()
def test_recorded_attentions_have_the_size_of_their_layer(name):
    case = CASES[f"{name}-eager"]
    model, images = case.patched(r=8), case.tensors(2)
    expected, n = model(images), case.num_tokens()
    got, out = ask(model, images, output_attentions=True, output_hidden_states=True)
    close(got, expected, 1e-5)
    assert [a.shape for a in out.attentions] == [(2, 4, m, m) for m in (n, n - 8, n - 16, n - 24)]
    for attention in out.attentions:
        close(attention.sum(-1), torch.ones(()).expand(attention.shape[:-1]).double(), 1e-6)


@pytest.mark.parametrize("name", ["videomae", "videomae-eager", "dpt", "blip", "blip2"])
def test_attentions_are_refused_where_the_half_is_ours(name):
    case = CASES[name]
    model, images = case.patched(r=8, prop_attn=True), case.tensors(2)
    expected = model(images)
    ask(model, images, output_hidden_states=True)  # puts hooks on the attentions too
    assert torch.equal(model(images), expected)
    with pytest.raises(
        UnsupportedModelError, match=r"gives no attentions to record\. Call it without"
    ):
        ask(model, images, output_attentions=True)
    model.r = 0
    assert ask(model, images, output_attentions=True)[1].attentions is not None
    model.r = 8
    block = case.blocks(model)[2]
    inner = block.self_attn if "blip" in name else block.attention.attention
    hook = inner.register_forward_hook(lambda module, args, out: None)
    with pytest.raises(UnsupportedModelError, match="has a forward hook, which the merging"):
        model(images)
    hook.remove()
    assert torch.equal(model(images), expected)


KERNELS = ["flash_attention_2", "flex_attention"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["vit", "clip", "dinov3", "siglip2", "beit", "internvl"])
@torch.no_grad()
def test_kernels_without_a_bias_are_refused_whenever_they_come(name, kernel, monkeypatch):
    """They cannot run here, so their place is taken by the kernel that can."""
    interfaces = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS
    masks = hf.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    monkeypatch.setitem(interfaces._global_mapping, kernel, interfaces["sdpa"])
    monkeypatch.setitem(masks._global_mapping, kernel, masks["sdpa"])
    case = CASES[name]
    model, images = case.patched(r=8), case.tensors(2)
    model(images)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = kernel
    text = rf"attends by '{kernel}', which cannot add .*set_attn_implementation\('sdpa'\), or patch"
    with pytest.raises(UnsupportedModelError, match=text):
        model(images)
    tome.apply_patch(model, prop_attn=False)
    model(images)
    assert model.tome.tokens[-1] == case.num_tokens() - 32


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_kernels_that_add_a_bias_agree(implementation):
    case = CASES["vit"]
    model, images = case.patched(r=8), case.tensors(2)
    expected = model(images)
    model.model.set_attn_implementation(implementation)
    close(model(images), expected, 1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov3", "clip", "beit"])
@pytest.mark.parametrize("r", [8, [0, 0, 0, 8]], ids=["everywhere", "last layer only"])
@torch.no_grad()
def test_a_users_mask_is_refused_while_merging(name, r):
    case = CASES[name]
    model, images = case.patched(r=r), case.tensors(2)
    n = case.num_tokens()
    mask = torch.ones(2, 1, n, n, dtype=torch.bool)
    mask[:, :, :, -1] = False
    with pytest.raises(UnsupportedModelError, match="attention_mask=, which describes all tokens"):
        ask(model, images, attention_mask=mask)
    model.r = 0
    assert not torch.equal(ask(model, images, attention_mask=mask)[0], model(images))


@each_kind
@torch.no_grad()
def test_arguments_that_say_nothing_about_tokens(case):
    model, images = case.patched(r=8), case.tensors(2)
    expected = model(images)
    flags = {"output_attentions": False, "output_hidden_states": False}
    if case.name not in ("transformers-videomae", "transformers-internvl"):
        flags["num_items_in_batch"] = 3
    assert torch.equal(ask(model, images, **flags)[0], expected)
    returned = model.model
    with torch.random.fork_rng():
        tuples = []
        hook = returned.register_forward_hook(lambda m, a, out: tuples.append(out) or None)
        model.always = {"return_dict": False}
        with pytest.raises(AttributeError, match="tuple"):
            model(images)
        hook.remove()
    assert isinstance(tuples[0], tuple)


def checkpointed(model, reentrant):
    model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


@each_kind
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("states", [False, True], ids=["output", "hidden states"])
def test_gradient_checkpointing(case, reentrant, states):
    model, images = case.patched(r=8), case.tensors(3).requires_grad_()

    def loss():
        FW.seed(0)
        if not states:
            return model(images).square().sum()
        _, out = ask(model, images, output_hidden_states=True)
        return sum(state.square().mean() for state in out.hidden_states)

    model.train()
    expected = FW.gradients(model, loss)
    checkpointed(model, reentrant)
    calls = []
    first = next(m for m in case.blocks(model)[1].modules() if isinstance(m, nn.LayerNorm))
    first.register_forward_hook(lambda *_: calls.append(1) or None)
    assert_same(FW.gradients(model, loss), expected)
    assert len(calls) == 2  # the layer was recomputed
    late = loss()
    model.r = 2
    assert_same(FW.gradients_of(model, late), expected)


@each_kind
def test_saved_and_loaded(case, tmp_path):
    """A patched model is saved as if it were not; what is loaded is a plain model."""
    model, images = case.patched(r=8).float(), case.tensors(2).float()
    merged = model(images)
    classes = [type(module).__name__ for module in model.modules()]
    model.model.save_pretrained(tmp_path)
    assert torch.equal(model(images), merged)
    again = copy.deepcopy(tome.remove_patch(copy.deepcopy(model)))
    cls: Any = original_class(model.model)
    again.model = cls.from_pretrained(tmp_path).eval()
    if case.name == "transformers-siglip2":  # its position embeddings are a buffer in these tests
        again.model.embeddings.position_embedding = model.model.embeddings.position_embedding
    if case.name == "transformers-dinov3":
        again.model.embeddings.mask_token = None
    if case.name == "transformers-beit":
        again.model = with_paired_positions(again.model)
    assert not any("tome" in name for name in again.state_dict())
    assert [type(module).__name__ for module in again.modules()] == classes
    tome.remove_patch(model)
    assert torch.equal(again(images), model(images))
    tome.apply_patch(again, r=8)
    assert torch.equal(again(images), merged)


@each_kind
@pytest.mark.parametrize("states", [False, True], ids=["output", "hidden states"])
@torch.no_grad()
def test_compiled(case, states):
    model = case.patched(depth=2, r=8)
    arguments = inputs(model, case.tensors(2))

    def run(arguments):
        out = model.model(**arguments, output_hidden_states=states)
        return [getattr(out, model.read), *(out.hidden_states or ())]

    expected = run(arguments)
    torch._dynamo.reset()
    got = torch.compile(run, fullgraph=True, backend="eager")(arguments)
    torch._dynamo.reset()
    assert len(got) == len(expected) == 1 + 3 * states
    for one, other in zip(got, expected, strict=True):
        close(one, other, 1e-12)


def inputs(reader, images):
    """The keyword arguments that ``reader`` calls its model with."""
    caught = []

    def catch(module, args, kwargs):
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        caught.append({**dict(zip(names, args, strict=False)), **kwargs})

    hook = reader.model.register_forward_pre_hook(catch, with_kwargs=True)
    reader(images)
    hook.remove()
    return caught[0]


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@each_kind
@torch.no_grad()
def test_half_weights_and_autocast(case):
    model, images = case.patched(r=16), case.tensors()
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.float()(images.float())
    half = model.bfloat16()(images.bfloat16())
    for output in (mixed, half):
        assert output.isfinite().all()
        assert output.shape == exact.shape
    assert model.tome.sizes.sum(1).tolist() == [case.num_tokens()] * 3
