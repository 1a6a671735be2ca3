"""Models that read hidden states of a vision tower: fewer image features are refused, and not ignored."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import tomecore.adapters.torch as tome
from tomecore.errors import UnsupportedModelError

SIZES = {"hidden_size": 32, "num_attention_heads": 2}


@torch.no_grad()
def test_without_restore_llava_is_refused():
    vision = hf.CLIPVisionConfig(
        **SIZES, num_hidden_layers=4, intermediate_size=64, image_size=32, patch_size=8
    )
    text = hf.LlamaConfig(**SIZES, num_hidden_layers=1, intermediate_size=32, vocab_size=40)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=39)
    model, images = hf.LlavaForConditionalGeneration(config).eval(), torch.randn(1, 3, 32, 32)
    tome.apply_patch(model, r=2, restore=False)
    with pytest.raises(UnsupportedModelError, match="restore=False has no effect while hidden"):
        model.get_image_features(images)
    tome.apply_patch(model)
    features = model.get_image_features(images)
    features = getattr(features, "pooler_output", features)
    features = features[0] if isinstance(features, list | tuple) else features
    assert features.shape[-2] == 16
