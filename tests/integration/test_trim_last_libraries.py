"""Trimming, and each library's code around a block: readers of layers, masks, hooks, kernels, commands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers as hf
from test_arithmetic import compare
from timm.models.naflexvit import NaFlexVit
from torch import nn
from typer.testing import CliRunner
from vits.of_transformers import vision_config

import tomecore.adapters.torch as tome
from tomecore import benchmark, cli
from tomecore.errors import UnsupportedModelError
from tomecore.loading import Loaded
from tomecore.loading.images import Preprocess

torch.set_num_threads(1)

X = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prepared(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def pair(build: Any, **settings: Any) -> tuple[Any, Any]:
    """The same model patched with ``trim_last``, and without."""
    return (
        tome.apply_patch(prepared(build()), **settings, trim_last=True),
        tome.apply_patch(prepared(build()), **settings),
    )


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# --- timm


def timm_vit(**more: Any) -> Any:
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 4}
    return timm.create_model("vit_tiny_patch16_224", **sizes, **more)


@pytest.mark.parametrize("r", [0, 8])
def test_readers_of_timm_get_what_they_get_without(r: int) -> None:
    trimmed, whole = pair(timm_vit, r=r)
    for read in (
        lambda m: [m.forward_intermediates(X)[0], *m.forward_intermediates(X)[1]],
        lambda m: m.forward_intermediates(X, intermediates_only=True, norm=True, output_fmt="NLC"),
        lambda m: m.get_intermediate_layers(X, n=2, return_prefix_tokens=False),
    ):
        for found, expected in zip(read(trimmed), read(whole), strict=True):
            same(found, expected)
    assert trimmed.forward_features(X).shape == (2, 1, 32)


@pytest.mark.parametrize("more", [{"global_pool": ""}, {"features_only": True}], ids=str)
def test_no_pooling_hands_out_all_tokens(more: dict[str, Any]) -> None:
    model = prepared(timm_vit(**more))
    with pytest.raises(UnsupportedModelError, match=r"returns all tokens \(global_pool=''\)"):
        tome.apply_patch(model, trim_last=True)


@pytest.mark.parametrize("pool", ["", "avg"])
def test_another_pool_after_the_patch(pool: str) -> None:
    model = tome.apply_patch(prepared(timm_vit()), trim_last=True)
    model.reset_classifier(5, pool)
    with pytest.raises(
        UnsupportedModelError, match="trim_last=True would give wrong results: the m"
    ):
        model(X)


def test_no_classifier_is_no_matter() -> None:
    trimmed, whole = pair(lambda: timm_vit(num_classes=0))
    same(trimmed(X), whole(X))


@pytest.mark.parametrize("r", [0, 8])
def test_checkpointing_of_timm(r: int) -> None:
    trimmed, whole = pair(timm_vit, r=r)
    trimmed.set_grad_checkpointing()
    trimmed.train()(X).square().sum().backward()
    whole.train()(X).square().sum().backward()
    for found, expected in zip(trimmed.parameters(), whole.parameters(), strict=True):
        same(found.grad, expected.grad)


@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("r", [0, 8])
@pytest.mark.parametrize("shape", ["keys", "pairs"])
def test_padding(r: int, prop_attn: bool, shape: str) -> None:
    """Keys that are padding are so for the first rows, too, also where nothing has merged."""
    real = torch.ones(2, 65, dtype=torch.bool)
    real[0, 40:] = False
    real[1, 50:] = False
    mask = real[:, None, None]
    if shape == "pairs":
        mask = mask & mask.transpose(-1, -2)
    trimmed, whole = pair(timm_vit, r=r, prop_attn=prop_attn)
    found, expected = (
        m.forward_head(m.forward_features(X, attn_mask=mask)) for m in (trimmed, whole)
    )
    same(found, expected)
    assert (found - trimmed(X)).abs().max() > 1e-6


def test_causal_attention_is_refused() -> None:
    model = tome.apply_patch(prepared(timm_vit()), trim_last=True)
    with pytest.raises(
        UnsupportedModelError, match=r"is_causal=.*model\.r = 0 \(without trim_last\)"
    ):
        model.forward_features(X, is_causal=True)


@pytest.mark.parametrize("r", [0, 8])
def test_padded_batches_of_naflex(r: int) -> None:
    sizes = {"patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 4, "num_classes": 7}

    def build() -> Any:
        return NaFlexVit(**sizes, class_token=True, global_pool="token", img_size=32)

    trimmed, whole = pair(build, r=r)
    generator = torch.Generator().manual_seed(1)
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), -1)
    batch = {
        "patches": torch.randn(2, 64, 48, dtype=torch.float64, generator=generator),
        "patch_coord": grid.reshape(1, 64, 2).repeat(2, 1, 1),
        "patch_valid": torch.arange(64) < torch.tensor([[64], [40]]),
    }
    same(trimmed(dict(batch)), whole(dict(batch)))
    same(trimmed(X), whole(X))


@pytest.mark.parametrize("r", [0, 8])
def test_timm_compiled(r: int) -> None:
    trimmed, whole = pair(timm_vit, r=r)
    torch._dynamo.reset()
    same(torch.compile(trimmed, fullgraph=True, backend="eager")(X), whole(X))


def test_half_precision_on_a_cpu() -> None:
    """Attention with a bias as products instead of the fused kernel."""
    trimmed, whole = (model.bfloat16() for model in pair(timm_vit, r=8))
    x = X.bfloat16()
    with torch.no_grad():
        found, expected = trimmed(x).float(), whole(x).float()
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max()


# --- torchvision


def torchvision_vit() -> Any:
    return torchvision.models.VisionTransformer(32, 4, 4, 4, 32, 64, num_classes=7)


def test_what_is_refused_of_torchvision() -> None:
    model = prepared(torchvision_vit())
    hook = model.encoder.layers[3].self_attention.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"self_attention has forward hooks"):
        tome.apply_patch(model, trim_last=True)
    hook.remove()
    tome.apply_patch(model, trim_last=True)
    model.encoder.layers[3].self_attention.add_zero_attn = True
    with pytest.raises(
        UnsupportedModelError, match=r"changed since apply_patch: .* adds a key of zeros"
    ):
        model(X)


# --- transformers


def hf_vit(cls: Any = hf.ViTForImageClassification, **fixed: Any) -> Any:
    return cls(vision_config(hf.ViTConfig, 32, 4, **fixed))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("r", [0, 8])
def test_recorded_states_and_maps_are_those_of_the_whole(r: int, kernel: str) -> None:
    trimmed, whole = pair(lambda: hf_vit(attn_implementation=kernel), r=r)
    wants = [{"output_hidden_states": True}]
    wants += [{"output_attentions": True}] if kernel == "eager" else []
    for want in wants:
        found, expected = trimmed(X, **want), whole(X, **want)
        same(found.logits, expected.logits)  # not trimmed
        for name in ("hidden_states", "attentions"):
            both = found.get(name) or (), expected.get(name) or ()
            assert len(both[1]) == (0 if f"output_{name}" not in want else 4 + (name[0] == "h"))
            for one, other in zip(*both, strict=True):
                same(one, other)
    # the library's recorders stay on its modules, and do nothing; its eager softmax is in float32
    same(trimmed(X).logits, whole(X).logits, 1e-12 if kernel == "sdpa" else 1e-7)
    assert trimmed.vit(X).last_hidden_state.shape == (2, 1, 32)
    assert whole.vit(X).last_hidden_state.shape == (2, 65, 32)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_the_user_beside_the_recorders(kind: str) -> None:
    model = tome.apply_patch(prepared(hf_vit(attn_implementation="eager")), trim_last=True)
    model(X, output_attentions=True)
    hook = getattr(model.vit.layers[3].attention, kind)(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"attention .* has a forward hook"):
        model(X)
    tome.apply_patch(model)
    with pytest.raises(UnsupportedModelError, match=r"attention .* has a forward hook"):
        tome.apply_patch(model, trim_last=True)
    hook.remove()
    tome.apply_patch(model, trim_last=True)


def test_the_pooler_reads_the_first_token() -> None:
    trimmed, whole = pair(lambda: hf_vit(hf.ViTModel), r=8)
    same(trimmed(X).pooler_output, whole(X).pooler_output)


def test_a_kernel_that_is_not_known() -> None:
    model = prepared(hf_vit())
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match=r"'flex_attention', .*set_attn_implementation"):
        tome.apply_patch(model, trim_last=True)
    model.config._attn_implementation = "sdpa"
    tome.apply_patch(model, trim_last=True)
    attention = model.vit.layers[3].attention
    attention.config = SimpleNamespace(_attn_implementation="flex_attention")
    with pytest.raises(
        UnsupportedModelError, match=r"would give wrong results: .* the model attends by"
    ):
        model(X)


def test_a_mask_is_refused() -> None:
    model = tome.apply_patch(prepared(hf_vit()), trim_last=True)
    mask = torch.ones(2, 65, dtype=torch.bool)
    mask[:, 50:] = False
    with pytest.raises(
        UnsupportedModelError, match=r"attention_mask=.*r = 0 \(without trim_last\)"
    ):
        model(X, attention_mask=mask)


def test_what_reads_all_tokens_is_refused() -> None:
    masked = prepared(hf_vit(hf.ViTForMaskedImageModeling, encoder_stride=4))
    with pytest.raises(UnsupportedModelError, match="ViTForMaskedImageModeling lays tokens out as"):
        tome.apply_patch(masked, trim_last=True)
    text = hf.GPT2Config(
        n_embd=32, n_layer=1, n_head=2, vocab_size=9, add_cross_attention=True, is_decoder=True
    )
    model = hf.VisionEncoderDecoderModel(
        encoder=hf.ViTModel(vision_config(hf.ViTConfig, 32, 4)), decoder=hf.GPT2LMHeadModel(text)
    )
    with pytest.raises(
        UnsupportedModelError,
        match=r"which tokens .*VisionEncoderDecoderModel reads of model\.encoder is not known",
    ):
        tome.apply_patch(model, trim_last=True)


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False).double()
        self.up = nn.Linear(2, base.out_features, bias=False).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("r", [0, 8])
def test_adapters_on_the_projections(r: int) -> None:
    torch.manual_seed(0)
    trimmed = prepared(hf_vit())
    for layer in trimmed.vit.layers:
        layer.attention.q_proj = LoRA(layer.attention.q_proj)
        layer.attention.v_proj = LoRA(layer.attention.v_proj)
    whole = hf_vit().double().eval()
    for layer in whole.vit.layers:
        layer.attention.q_proj = LoRA(layer.attention.q_proj)
        layer.attention.v_proj = LoRA(layer.attention.v_proj)
    whole.load_state_dict(trimmed.state_dict())
    tome.apply_patch(trimmed, r=r, trim_last=True)
    tome.apply_patch(whole, r=r)
    same(trimmed(X).logits, whole(X).logits)


def test_transformers_compiled() -> None:
    trimmed, whole = pair(hf_vit, r=8)
    torch._dynamo.reset()
    compiled = torch.compile(trimmed, fullgraph=True, backend="eager")
    same(compiled(X).logits, whole(X).logits)


# --- multiply-adds, and the command


@pytest.mark.parametrize("build", [timm_vit, torchvision_vit, hf_vit], ids=lambda f: f.__name__)
def test_the_multiply_adds_are_those_that_run(build: Any) -> None:
    model = tome.apply_patch(prepared(build()), trim_last=True)
    compare(model, X.clone())


def test_the_benchmark_measures_the_trimmed_model() -> None:
    loaded = Loaded("small", timm_vit().eval(), Preprocess((32, 32)))
    found = benchmark.measure(loaded, 4, batch=2, rounds=1, trim_last=True)
    assert found.trim_last
    assert found.as_dict()["trim_last"] is True
    model = tome.apply_patch(timm_vit(), r=4)
    assert found.limit > model.tome.arithmetic.limit(65, 4)
    assert not benchmark.measure(loaded, 4, batch=2, rounds=1).trim_last
    parts = benchmark.profile(loaded, 4, batch=2, rounds=1, trim_last=True).parts
    assert "matching" in parts


def test_the_command(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from tomecore.loading.images import Preprocess\n"
        "from tomecore.models.torch import VisionTransformer\n"
        "def vit():\n"
        "    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2)\n"
        "    return VisionTransformer(**sizes), Preprocess((32, 32))\n"
    )
    monkeypatch.chdir(tmp_path)
    given = ["bench", "--model", "mine.py:vit", "--batch", "2", "--rounds", "1", "--r", "2"]
    limits = []
    for more in ([], ["--trim-last", "--profile"]):
        result = CliRunner().invoke(cli.app, [*given, *more], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        assert ("the last block trimmed" in result.output) == bool(more)
        row = next(line for line in result.output.splitlines() if line.split()[:2] == ["2", "2"])
        limits.append(float(row.split()[7].rstrip("x")))
    assert np.diff(limits) > 0.1
