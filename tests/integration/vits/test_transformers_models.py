"""Models of transformers around a tower: with text, with decoders, backbones; padding; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from adapters.frameworks import TORCH as FW
from torch import nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from tomecore.adapters import torch as tome
from tomecore.adapters.families.transformers.common import is_recorded
from tomecore.errors import UnsupportedModelError
from vits.of_transformers import vision_config

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "max_position_embeddings": 128,
    "projection_dim": 16,
    "projection_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGES = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)))
WORDS = torch.tensor([[1, 5, 7, 2], [1, 9, 3, 2]])


def close(got, expected, error=1e-11):
    torch.testing.assert_close(got, expected, rtol=0, atol=error * float(expected.abs().max()))


def vision(config, depth=3, **fixed):
    return vision_config(config, 32, depth, **fixed).to_dict()


def two_towers(config, cls, vision_class, text_class):
    text = text_class(**SMALL).to_dict()
    whole = config(text_config=text, vision_config=vision(vision_class), projection_dim=16)
    return FW.prepare(cls(whole))


@pytest.mark.parametrize(
    ("config", "cls", "vision_class", "text_class"),
    [
        (hf.CLIPConfig, hf.CLIPModel, hf.CLIPVisionConfig, hf.CLIPTextConfig),
        (hf.SiglipConfig, hf.SiglipModel, hf.SiglipVisionConfig, hf.SiglipTextConfig),
        (hf.MetaClip2Config, hf.MetaClip2Model, hf.MetaClip2VisionConfig, hf.MetaClip2TextConfig),
    ],
    ids=["clip", "siglip", "metaclip2"],
)
@torch.no_grad()
def test_only_the_vision_tower_is_patched(config, cls, vision_class, text_class):
    model = two_towers(config, cls, vision_class, text_class)
    layers = {
        name: m for name, m in model.named_modules() if type(m).__name__.endswith("EncoderLayer")
    }
    classes = {name: type(layer) for name, layer in layers.items()}
    assert len(set(classes.values())) == 1
    words = model.get_text_features(WORDS)
    before = model.get_image_features(IMAGES)
    tome.apply_patch(model, r=8)
    for name, layer in layers.items():
        assert (type(layer) is classes[name]) is name.startswith("text_model")
    after = model(input_ids=WORDS, pixel_values=IMAGES)
    assert after.logits_per_image.shape == (2, 2)
    got = model.get_image_features(IMAGES)
    for one, other in zip(as_tensors(got), as_tensors(before), strict=True):
        assert one.shape == other.shape
        assert not torch.equal(one, other)
    assert all(map(torch.equal, as_tensors(model.get_text_features(WORDS)), as_tensors(words)))
    tome.remove_patch(model)
    assert all(map(torch.equal, as_tensors(model.get_image_features(IMAGES)), as_tensors(before)))


def as_tensors(out):
    return [out] if isinstance(out, torch.Tensor) else [x for x in out.values() if x is not None]


def llava(**fixed):
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**SMALL).to_dict(),
        vision_config=vision(hf.CLIPVisionConfig),
        image_token_index=50,
        **fixed,
    )
    return hf.LlavaForConditionalGeneration(config), 64


def paligemma():
    config = hf.PaliGemmaConfig(
        text_config=hf.GemmaConfig(**SMALL).to_dict(),
        vision_config={**vision(hf.SiglipVisionConfig), "vision_use_head": False},
        image_token_index=50,
        projection_dim=16,
        hidden_size=16,
    )
    return hf.PaliGemmaForConditionalGeneration(config), 64


def smolvlm():
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**SMALL).to_dict(),
        vision_config=vision(hf.SmolVLMVisionConfig),
        image_token_id=50,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config), 16


def internvl():
    config = hf.InternVLConfig(
        text_config=hf.Qwen2Config(**SMALL).to_dict(),
        vision_config=vision(hf.InternVLVisionConfig),
        image_token_id=50,
        vision_feature_layer=-1,
    )
    return hf.InternVLForConditionalGeneration(config), 16


TALKING = {
    "llava": llava,
    "llava-full": lambda: (*llava(vision_feature_select_strategy="full")[:1], 65),
    "llava-layers": lambda: llava(vision_feature_layer=[-2, 1]),
    "llava-last": lambda: llava(vision_feature_layer=-1),
    "paligemma": paligemma,
    "smolvlm": smolvlm,
    "internvl": internvl,
}


@pytest.mark.parametrize("build", TALKING.values(), ids=TALKING)
@torch.no_grad()
def test_models_that_talk_about_images(build):
    """They count image tokens, read a layer before the last, and shuffle pixels, which needs all tokens."""
    model, count = build()
    model = FW.prepare(model)
    words = torch.cat([torch.full((2, count), 50), WORDS], dim=1)
    images = IMAGES[:, None] if isinstance(model, hf.SmolVLMForConditionalGeneration) else IMAGES
    arguments = {
        "input_ids": words,
        "pixel_values": images,
        "attention_mask": torch.ones_like(words),
    }
    before = model(**arguments).logits
    tome.apply_patch(model)
    assert torch.equal(model(**arguments).logits, before)
    model.r = 8
    after = model(**arguments).logits
    assert after.shape == before.shape
    assert not torch.equal(after, before)
    start = 64 + (model.tome.protected)
    assert model.tome.tokens == [start - 8, start - 16, start - 24]
    generated = model.generate(**arguments, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= words.shape[1] + 3
    tome.remove_patch(model)
    assert torch.equal(model(**arguments).logits, before)


@torch.no_grad()
def test_features_of_a_layer_before_the_last_are_those_of_all_tokens():
    model = FW.prepare(llava()[0])
    tome.apply_patch(model, r=8)
    tower = next(m for m in model.modules() if isinstance(m, hf.CLIPVisionModel))
    states = tower(IMAGES, output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [65] * 4
    seen = []
    projector = next(m for n, m in model.named_modules() if n.endswith("multi_modal_projector"))
    projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]) or None)
    model.get_image_features(IMAGES)
    assert torch.equal(seen[0], states[-2][:, 1:])


@torch.no_grad()
def test_the_decoder_of_a_masked_autoencoder_is_left_alone():
    config = vision_config(
        hf.ViTMAEConfig,
        32,
        3,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        decoder_num_hidden_layers=2,
    )
    model = FW.prepare(hf.ViTMAEForPreTraining(config))
    noise = torch.rand(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = model(IMAGES, noise=noise)
    tome.apply_patch(model, r=2)
    assert not any(hasattr(module, "_tome") for module in model.decoder.modules())
    after = model(IMAGES, noise=noise)
    assert model.tome.tokens == [15, 13, 11]  # a quarter of the patches and the class token, merged
    assert model.tome.prop_attn is False
    assert torch.equal(after.mask, before.mask)
    assert after.logits.shape == before.logits.shape
    assert not torch.equal(after.logits, before.logits)


BACKBONES = {
    "dinov2": (hf.Dinov2Config, hf.Dinov2Backbone, {}),
    "registers": (
        hf.Dinov2WithRegistersConfig,
        hf.Dinov2WithRegistersBackbone,
        {"num_register_tokens": 4},
    ),
    "dinov3": (hf.DINOv3ViTConfig, hf.DINOv3ViTBackbone, {"num_register_tokens": 4}),
    "beit": (hf.BeitConfig, hf.BeitBackbone, {"use_relative_position_bias": True}),
}


@pytest.mark.parametrize(("config", "cls", "fixed"), BACKBONES.values(), ids=BACKBONES)
@torch.no_grad()
def test_backbones_hand_on_grids(config, cls, fixed):
    stages = ["stem", "stage1", "stage2", "stage3"]
    model = FW.prepare(cls(vision_config(config, 32, 3, out_features=stages, **fixed)))
    before = model(IMAGES).feature_maps
    tome.apply_patch(model, restore=False)
    assert all(map(torch.equal, model(IMAGES).feature_maps, before))
    model.r = 8
    with pytest.raises(UnsupportedModelError, match="restore=False has no effect while hidden"):
        model(IMAGES)  # it lays the hidden states out
    tome.apply_patch(model)
    after = model(IMAGES).feature_maps
    assert [grid.shape for grid in after] == [grid.shape for grid in before] == [(2, 32, 8, 8)] * 4
    assert torch.equal(after[0], before[0])
    for grid, old in zip(after[1:], before[1:], strict=True):
        assert not torch.equal(grid, old)
    places = [len({tuple(v.tolist()) for v in grid[0].flatten(1).T}) for grid in after]
    assert places == [64, 56, 48, 40]


@torch.no_grad()
def test_dense_prediction_on_a_backbone():
    config = hf.DepthAnythingConfig(
        backbone_config=vision_config(
            hf.Dinov2Config,
            32,
            4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
            reshape_hidden_states=False,
        ),
        patch_size=4,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    model = FW.prepare(hf.DepthAnythingForDepthEstimation(config))
    before = model(IMAGES).predicted_depth
    after = tome.apply_patch(model, r=4)(IMAGES).predicted_depth
    assert after.shape == before.shape
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("config", "cls", "fixed"),
    [
        (hf.ViTConfig, hf.ViTForImageClassification, {}),
        (hf.Dinov2Config, hf.Dinov2ForImageClassification, {}),
        (hf.BeitConfig, hf.BeitForImageClassification, {"use_relative_position_bias": True}),
        (hf.DINOv3ViTConfig, hf.DINOv3ViTModel, {}),
    ],
    ids=["vit", "dinov2", "beit", "dinov3"],
)
@torch.no_grad()
def test_images_of_other_sizes(config, cls, fixed):
    model = FW.prepare(cls(vision_config(config, 32, 3, **fixed)))
    tome.apply_patch(model, r=4, trace_source=True)
    flags = (
        {}
        if config in (hf.Dinov2Config, hf.DINOv3ViTConfig)
        else {"interpolate_pos_encoding": True}
    )
    for height, width in ((16, 24), (40, 12), (32, 32)):
        out = model(torch.randn(2, 3, height, width, dtype=torch.float64), **flags)
        assert torch.isfinite(out[0]).all()
        tokens = height * width // 16 + model.tome.protected
        assert model.tome.sizes.sum(1).tolist() == [tokens, tokens]


def with_siglip2(valid):
    """(model, its arguments) with ``valid`` patches in the second of two samples of 64 places."""
    model = FW.prepare(
        hf.Siglip2VisionModel(vision_config(hf.Siglip2VisionConfig, 32, 3, num_patches=64))
    )
    patches = torch.randn(
        2, 64, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, valid:] = 0
    shapes = torch.tensor([[8, 8], [valid // 4, 4]])
    return (
        model,
        {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes},
        mask,
    )


def with_idefics(config, cls):
    def build(valid):
        model = FW.prepare(cls(vision_config(config, 32, 3)))
        mask = torch.ones(2, 8, 8, dtype=torch.bool)
        mask[1, valid // 8 :] = False
        return model, {"pixel_values": IMAGES, "patch_attention_mask": mask}, mask.flatten(1)

    return build


PADDED = {
    "siglip2": with_siglip2,
    "idefics2": with_idefics(Idefics2VisionConfig, Idefics2VisionTransformer),
    "idefics3": with_idefics(hf.Idefics3VisionConfig, hf.Idefics3VisionTransformer),
    "smolvlm": with_idefics(hf.SmolVLMVisionConfig, hf.SmolVLMVisionTransformer),
}
padded = pytest.mark.parametrize("build", PADDED.values(), ids=PADDED)


@padded
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("prop_attn", [True, False])
@torch.no_grad()
def test_padding_merges_first_and_weighs_nothing(build, implementation, prop_attn):
    """While only padding merges in a sample, its tokens are those of the unpatched model."""
    model, arguments, mask = build(32)
    model.set_attn_implementation(implementation)
    before = model(**arguments).last_hidden_state
    tome.apply_patch(model, r=8, prop_attn=prop_attn, trace_source=True)
    for settings in ({}, {"output_hidden_states": True}):
        if settings and "siglip2" not in type(model).__name__.lower():
            continue
        after = model(**arguments, **settings).last_hidden_state
        valid = mask[1].bool()
        error = 1e-11 if implementation == "sdpa" else 1e-5
        close(after[1, valid], before[1, valid], error)
        assert torch.isfinite(after).all()
        assert not torch.allclose(after[0], before[0])
    model.r = [30, 15, 9]
    assert torch.isfinite(model(**arguments).last_hidden_state).all()


@padded
@pytest.mark.parametrize("r", [8, [30, 15, 9]], ids=str)
@torch.no_grad()
def test_sizes_count_patches_and_not_padding(build, r):
    model, arguments, mask = build(32)
    tome.apply_patch(model, r=r, trace_source=True)
    model(**arguments)
    sizes, source = model.tome.sizes, model.tome.source
    counted = torch.zeros_like(sizes).scatter_add(1, source, mask.to(sizes.dtype))
    assert torch.equal(counted, sizes)
    assert sizes.sum(1).tolist() == [64, 32]
    if r == 8:  # there is padding to merge in all layers, so nothing else does
        assert sizes[1].max() == 1


@padded
def test_padding_under_gradients(build):
    model, arguments, _ = build(32)
    tome.apply_patch(model, r=8)
    gradients = FW.gradients(model, lambda: model(**arguments).last_hidden_state.square().sum())
    assert all(torch.isfinite(torch.from_numpy(g)).all() for g in gradients.values())


@padded
@torch.no_grad()
def test_padding_compiled(build):
    model, arguments, mask = build(32)
    tome.apply_patch(model, r=8)
    expected = model(**arguments).last_hidden_state
    torch._dynamo.reset()
    got = torch.compile(model, backend="eager")(**arguments).last_hidden_state
    torch._dynamo.reset()
    close(got[0], expected[0])
    close(got[1, mask[1].bool()], expected[1, mask[1].bool()])


OTHERS = {
    "yolos": (hf.YolosConfig, hf.YolosModel, "detection tokens come after the patches"),
    "data2vec": (
        hf.Data2VecVisionConfig,
        hf.Data2VecVisionModel,
        "its encoder collects hidden states by itself",
    ),
    "pixtral": (hf.PixtralVisionConfig, hf.PixtralVisionModel, "packs the patches of all images"),
    "sam": (
        hf.SamVisionConfig,
        hf.SamVisionModel,
        r"has a window_size \(.*\): it attends in windows",
    ),
    "swin": (hf.SwinConfig, hf.SwinModel, r"has a window_size \(.*\): it attends in windows"),
    "swin2": (hf.Swinv2Config, hf.Swinv2Model, r"has a window_size \(.*\): it attends in windows"),
    "hiera": (hf.HieraConfig, hf.HieraModel, r"has a window_size \(.*\)|attends in windows"),
    "vitdet": (hf.VitDetConfig, hf.VitDetModel, r"has a window_size \(.*\): it attends in windows"),
    "bert": (hf.BertConfig, hf.BertModel, "holds no vision transformer that tomecore knows"),
}


@pytest.mark.parametrize(("config", "cls", "text"), OTHERS.values(), ids=OTHERS)
def test_other_models_are_refused_and_untouched(config, cls, text):
    with torch.device("meta"):
        model = cls(config())
    before = FW.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(model)
    assert FW.fingerprint(model) == before


@torch.no_grad()
def test_what_data2vec_is_refused_for():
    small = {
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"intermediate_size": 64, "image_size": 32, "patch_size": 8},
    }

    def hidden_states_noticed(model):
        seen = []
        for module in model.modules():
            if type(module).__name__.endswith("Layer"):
                module.register_forward_pre_hook(
                    lambda *_: seen.append(is_recorded("hidden_states"))
                )
        out = model(torch.zeros(1, 3, 32, 32), output_hidden_states=True)
        assert len(out.hidden_states) == 2
        return seen

    model = hf.Data2VecVisionModel(
        hf.Data2VecVisionConfig(**small, use_relative_position_bias=True)
    )
    assert hidden_states_noticed(model) == [False]
    assert hidden_states_noticed(hf.ViTModel(hf.ViTConfig(**small))) == [True]
    layer, x = model.encoder.layer[0], torch.randn(1, 17, 32)
    assert layer(x, resolution=(32, 32))[0].shape == x.shape
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        layer(x[:, 4:], resolution=(32, 32))


def test_a_packed_tower_is_refused():
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    with torch.device("meta"):
        model = Qwen2VisionTransformerPretrainedModel(Qwen2VLVisionConfig(depth=2))
    with pytest.raises(UnsupportedModelError, match="packs the patches of all images into one"):
        tome.apply_patch(nn.Sequential(model))
