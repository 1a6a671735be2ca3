"""Vision towers of transformers that merging would break, and why."""

from __future__ import annotations

from tomecore.adapters.families.transformers.common import of

__all__ = ["REFUSED"]

_PACKED = (
    "it packs the patches of all images into one sequence, in an order that later modules rely on, and "
    "merging needs one sequence for each image"
)
_BEHIND = (
    "its detection tokens come after the patches, where tomecore does not protect them, and position "
    "embeddings of all tokens may be added between its layers"
)
_COLLECTING = (
    "its encoder collects hidden states by itself, so merging cannot know that all tokens are needed, and "
    "its attention may add a position bias for all tokens that it computes itself"
)
_OLD = "its parts have other names in this version of transformers; tomecore knows 5.9 and later"

_PACKED_TOWERS = {
    "cohere_compass": "CohereCompassVisionModel",
    "ernie4_5_vl_moe": "Ernie4_5_VLMoeVisionTransformerPretrainedModel",
    "glm4v": "Glm4vVisionModel",
    "glm4v_moe": "Glm4vMoeVisionModel",
    "glm_ocr": "GlmOcrVisionModel",
    "kimi_k25": "Kimi_K25VisionModel",
    "paddleocr_vl": "PaddleOCRVisionTransformer",
    "pixtral": "PixtralVisionModel",
    "qwen2_5_omni": "Qwen2_5OmniVisionEncoder",
    "qwen2_5_vl": "Qwen2_5_VisionTransformerPretrainedModel",
    "qwen2_vl": "Qwen2VisionTransformerPretrainedModel",
    "qwen3_5": "Qwen3_5VisionModel",
    "qwen3_5_moe": "Qwen3_5MoeVisionModel",
    "qwen3_omni_moe": "Qwen3OmniMoeVisionEncoder",
    "qwen3_vl": "Qwen3VLVisionModel",
    "qwen3_vl_moe": "Qwen3VLMoeVisionModel",
    "video_llama_3": "VideoLlama3VisionModel",
}

#: supported classes in versions of transformers in which their parts have other names
_MOVED_TOWERS = {
    "beit": "BeitModel",
    "deit": "DeiTModel",
    "ijepa": "IJepaModel",
    "vit": "ViTModel",
    "vit_mae": "ViTMAEModel",
    "vit_msn": "ViTMSNModel",
    "vivit": "VivitModel",
}

REFUSED = {
    **{name: _OLD for module, cls in _MOVED_TOWERS.items() for name in of(module, cls)},
    **{name: _PACKED for module, cls in _PACKED_TOWERS.items() for name in of(module, cls)},
    **dict.fromkeys(of("yolos", "YolosModel"), _BEHIND),
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionModel": _COLLECTING,
}
