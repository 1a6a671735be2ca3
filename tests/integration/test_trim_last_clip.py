"""Trimming in models that read the class token of a CLIP or DINOv3: whole models, readers, kernels."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import transformers as hf
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from test_arithmetic import compare
from test_trim_last_libraries import X, pair, prepared, same
from torch.utils._pytree import tree_leaves
from vits.of_open_clip import TEXT, VISION, open_clip_tower, openai_model
from vits.of_transformers import vision_config

import tomecore.adapters.torch as tome
from tomecore.errors import UnsupportedModelError

torch.set_num_threads(1)

WORDS = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(0))
SMALL = {"image_size": 32, "layers": 4}

# --- open_clip, OpenAI


def open_clip_model(cls: Any = CLIP, **vision: Any) -> Any:
    return cls(16, {**VISION, **SMALL, **vision}, TEXT)


def tower(**fixed: Any) -> Any:
    return open_clip_tower(**fixed)(32, 4)


def sequence_first() -> Any:
    model = tower()
    model.transformer.batch_first = False
    for block in model.transformer.resblocks:
        block.attn.batch_first = False
    return model


@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("r", [0, 8])
def test_a_whole_model_of_open_clip(r: int, cls: Any) -> None:
    trimmed, whole = pair(lambda: open_clip_model(cls), r=r)
    for found, expected in zip(trimmed(X, WORDS), whole(X, WORDS), strict=True):
        same(found, expected)
    assert torch.equal(trimmed.encode_text(WORDS), whole.encode_text(WORDS))


@pytest.mark.parametrize("r", [0, 8])
def test_tokens_before_images(r: int) -> None:
    trimmed, whole = pair(sequence_first, r=r)
    same(trimmed(X), whole(X))
    same(trimmed(X), pair(tower, r=r)[1](X))


def test_readers_of_open_clip_get_what_they_get_without() -> None:
    trimmed, whole = pair(tower, r=8)
    found, expected = (m.forward_intermediates(X) for m in (trimmed, whole))
    same(found["image_features"], expected["image_features"])
    for one, other in zip(
        found["image_intermediates"], expected["image_intermediates"], strict=True
    ):
        same(one, other)


def test_what_is_refused_of_open_clip() -> None:
    words = {**TEXT, "embed_cls": True, "output_tokens": True}
    decoder = {"width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2, "context_length": 8}
    vision = {**VISION, **SMALL, "attentional_pool": True, "output_tokens": True}
    coca = prepared(CoCa(16, {**decoder, "vocab_size": 50}, words, vision))
    with pytest.raises(UnsupportedModelError, match=r"tokens \(an attentional pooler\)"):
        tome.apply_patch(coca, trim_last=True)
    model = prepared(tower(output_tokens=True))
    with pytest.raises(UnsupportedModelError, match=r"returns all tokens \(output_tokens=True\)"):
        tome.apply_patch(model, trim_last=True)
    model.output_tokens = False
    tome.apply_patch(model, trim_last=True)
    model(X)
    model.output_tokens = True
    with pytest.raises(
        UnsupportedModelError, match="trim_last=True would give wrong results: the m"
    ):
        model(X)
    model.output_tokens = False
    hook = model.transformer.resblocks[3].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"attn .* has a forward hook"):
        model(X)
    hook.remove()
    model(X)


@torch.no_grad()
def test_openais_own_package() -> None:
    """It computes in float32, whatever its weights are."""
    images, settings = X.float(), (16, 32, 4, 64, 4, 8, 50, 64, 1, 2)
    torch.manual_seed(0)
    whole = openai_model().CLIP(*settings).eval()
    trimmed = openai_model().CLIP(*settings).eval()
    trimmed.load_state_dict(whole.state_dict())
    for r in (0, 8):
        tome.apply_patch(whole, r=r)
        tome.apply_patch(trimmed, r=r, trim_last=True)
        same(trimmed.encode_image(images), whole.encode_image(images), 1e-5)
    assert torch.equal(trimmed.encode_text(WORDS), whole.encode_text(WORDS))
    rows = []
    hook = trimmed.visual.transformer.register_forward_hook(lambda *a: rows.append(a[2].shape[0]))
    trimmed.encode_image(images)
    hook.remove()
    assert rows == [1]


# --- transformers

_WORDS = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_WORDS |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 2}
_KINDS = {
    "clip": (hf.CLIPConfig, hf.CLIPModel, hf.CLIPVisionConfig),
    "metaclip2": (hf.MetaClip2Config, hf.MetaClip2Model, hf.MetaClip2VisionConfig),
    "altclip": (hf.AltCLIPConfig, hf.AltCLIPModel, hf.AltCLIPVisionConfig),
    "chinese-clip": (
        hf.ChineseCLIPConfig,
        hf.ChineseCLIPModel,
        hf.ChineseCLIPVisionConfig,
    ),
}


def whole_clip(kind: str = "clip") -> Any:
    config, cls, vision = _KINDS[kind]
    seen = vision_config(vision, 32, 4).to_dict()
    return cls(config(text_config=dict(_WORDS), vision_config=seen, projection_dim=16))


def with_projection(cls: Any, kind: str = "clip", **fixed: Any) -> Any:
    return cls(vision_config(_KINDS[kind][2], 32, 4, projection_dim=16, **fixed))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("r", [0, 8])
def test_a_whole_model_of_transformers(r: int, kind: str) -> None:
    trimmed, whole = pair(lambda: whole_clip(kind), r=r)
    found, expected = (m(input_ids=WORDS, pixel_values=X) for m in (trimmed, whole))
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        same(found[name], expected[name])
    assert found.vision_model_output.last_hidden_state.shape == (2, 1, 32)
    assert expected.vision_model_output.last_hidden_state.shape == (2, 65, 32)


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (hf.CLIPVisionModelWithProjection, "clip"),
        (hf.MetaClip2VisionModelWithProjection, "metaclip2"),
    ],
)
def test_image_embeddings(cls: Any, kind: str) -> None:
    trimmed, whole = pair(lambda: with_projection(cls, kind), r=8)
    same(trimmed(X).image_embeds, whole(X).image_embeds)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_recorded_states_and_maps_are_those_of_the_whole(kernel: str) -> None:
    trimmed, whole = pair(
        lambda: with_projection(hf.CLIPVisionModelWithProjection, attn_implementation=kernel), r=8
    )
    wants = ["hidden_states", *(["attentions"] if kernel == "eager" else [])]
    for want in wants:
        found, expected = (m(X, **{f"output_{want}": True}) for m in (trimmed, whole))
        assert len(expected[want]) == (5 if want == "hidden_states" else 4)
        for one, other in zip(found[want], expected[want], strict=True):
            same(one, other)
        same(found.image_embeds, expected.image_embeds)
    # its eager softmax is in float32
    tolerance = 1e-12 if kernel == "sdpa" else 1e-6
    same(trimmed(X).image_embeds, whole(X).image_embeds, tolerance)


def test_what_is_refused_of_transformers() -> None:
    seen = vision_config(hf.CLIPVisionConfig, 32, 4).to_dict()
    config = hf.CLIPConfig(text_config=dict(_WORDS), vision_config=seen, num_labels=7)
    with pytest.raises(UnsupportedModelError, match="CLIPForImageClassification pools over tokens"):
        tome.apply_patch(prepared(hf.CLIPForImageClassification(config)), trim_last=True)
    model = prepared(with_projection(hf.CLIPVisionModelWithProjection))
    model.vision_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match=r"'flex_attention', .*set_attn_implementation"):
        tome.apply_patch(model, trim_last=True)


def dinov3(cls: Any = hf.DINOv3ViTModel, **fixed: Any) -> Any:
    settings = {"num_register_tokens": 2, "pos_embed_rescale": None, **fixed}
    return cls(vision_config(hf.DINOv3ViTConfig, 32, 4, **settings))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("r", [0, 8])
def test_dinov3(r: int, kernel: str) -> None:
    trimmed, whole = pair(lambda: dinov3(attn_implementation=kernel), r=r)
    tolerance = 1e-12 if kernel == "sdpa" else 1e-6
    found, expected = trimmed(X), whole(X)
    same(found.pooler_output, expected.pooler_output, tolerance)
    same(found.last_hidden_state, expected.last_hidden_state[:, :3], tolerance)
    found, expected = (m(X, output_hidden_states=True).hidden_states for m in (trimmed, whole))
    assert len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_a_backbone_of_dinov3_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"which tokens .*DINOv3ViTBackbone reads of"):
        tome.apply_patch(prepared(dinov3(hf.DINOv3ViTBackbone)), trim_last=True)


# --- both


def reads_all(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise AssertionError("only its name matters")


def subclassed(module: Any, name: str) -> None:
    module.__class__ = type("Own", (type(module),), {name: reads_all})


def replaced(module: Any, name: str) -> None:
    setattr(module, name, types.MethodType(reads_all, module))


@pytest.mark.parametrize("change", [subclassed, replaced])
@pytest.mark.parametrize(
    ("build", "path", "name"),
    [
        (whole_clip, "", "get_image_features"),
        (whole_clip, "", "forward"),
        (whole_clip, "vision_model", "forward"),
        (whole_clip, "vision_model.encoder", "forward"),
        (open_clip_model, "", "encode_image"),
        (open_clip_model, "visual", "_pool"),
        (open_clip_model, "visual.transformer", "forward"),
        (dinov3, "", "forward"),
        (dinov3, "model", "forward"),
    ],
    ids=lambda given: given if isinstance(given, str) else given.__name__,
)
def test_methods_of_ones_own_on_the_way(build: Any, path: str, name: str, change: Any) -> None:
    """Any module from the whole model down to the list of blocks may read the tokens after the blocks."""
    model = prepared(build())
    change(model.get_submodule(path), name)
    text = f"Own has a {name} of its own" if change is subclassed else f"its {name} was replaced on"
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(model, trim_last=True)
    assert not hasattr(model, "tome")


@pytest.mark.parametrize(
    "build",
    [tower, lambda: with_projection(hf.CLIPVisionModelWithProjection), dinov3],
    ids=["open_clip", "transformers", "dinov3"],
)
def test_compiled_and_counted(build: Any) -> None:
    trimmed = tome.apply_patch(prepared(build()), r=8, trim_last=True)
    torch._dynamo.reset()
    compiled = torch.compile(trimmed, fullgraph=True, backend="eager")
    both = tree_leaves(compiled(X)), tree_leaves(trimmed(X))
    for found, expected in zip(*both, strict=True):
        same(found, expected)
    compare(trimmed, X.clone())
