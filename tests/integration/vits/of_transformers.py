"""Vision transformers of Hugging Face transformers, built small with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from adapters.cases import Case
from adapters.frameworks import TORCH
from torch import nn
from transformers.models.git.configuration_git import GitVisionConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2VisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer
from transformers.models.kosmos2.configuration_kosmos2 import Kosmos2VisionConfig
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2VisionModel

__all__ = ["MORE", "SINGLE", "Patches", "Read", "vision_config", "with_paired_positions"]

TINY = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": 4,
    "num_labels": 7,
}


def vision_config(cls: Any, img_size: int, depth: int, **fixed: Any) -> Any:
    """A small configuration; transformers takes arguments that a class does not know as well."""
    return cls(**{**TINY, "image_size": img_size, "num_hidden_layers": depth, **fixed})


class Read(nn.Module):
    """One tensor of what a model of transformers returns, for images as other libraries take them."""

    def __init__(self, model: nn.Module, read: str, **always: Any) -> None:
        super().__init__()
        self.model = model
        self.read = read
        self.always = always

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = getattr(self.model(images, **self.always), self.read)
        return out


class Patches(Read):
    """SigLIP 2 takes flat patches, a mask of those that are padding, and the shape of each grid."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = images.shape[-1] // 4
        patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.int64)
        shapes = torch.tensor([[side, side]] * len(images))
        out: torch.Tensor = getattr(self.model(patches, mask, shapes, **self.always), self.read)
        return out


class Video(Read):
    """Each image as a film of two frames."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.stack([images, images.flip(-1)], dim=1))


class Noiseless(Read):
    """MAE's encoder without its random masking, and with position embeddings that are trained."""

    def __init__(self, model: nn.Module, read: str) -> None:
        super().__init__(model.requires_grad_(), read)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = (images.shape[-1] // 4) ** 2
        noise = torch.arange(patches, dtype=images.dtype).expand(len(images), -1)
        out: torch.Tensor = getattr(self.model(images, noise=noise, **self.always), self.read)
        return out


def model_of(config: Any, cls: Any, read: str = "logits", wrap: Any = Read, **fixed: Any) -> Any:
    """``build`` of a Case: a model of class ``cls``, of which ``read`` is what counts."""

    def build(img_size: int, depth: int) -> nn.Module:
        return wrap(cls(vision_config(config, img_size, depth, **fixed)), read)

    return build


def paired(rows: torch.Tensor) -> torch.Tensor:
    """Rows of positions in which each second one is the one before, so that twins share it."""
    return rows[..., ::2, :].repeat_interleave(2, dim=-2)


def tables(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    rope = next(m for m in model.modules() if type(m).__name__ == "DINOv3ViTRopePositionEmbedding")
    cos, sin = rope(x.new_zeros(1, 3, 32, 32))
    return {"position_embeddings": (paired(cos), paired(sin))}


def dinov3(**fixed: Any) -> Callable[..., nn.Module]:
    """Without what is used in its own training only: masked patches, and positions drawn at random."""

    def build(img_size: int, depth: int) -> nn.Module:
        config = vision_config(hf.DINOv3ViTConfig, img_size, depth, pos_embed_rescale=None, **fixed)
        model = hf.DINOv3ViTModel(config)
        model.embeddings.mask_token = None
        return Read(model, "pooler_output")

    return build


def siglip2(img_size: int, depth: int) -> nn.Module:
    """Its position embeddings, resized in float32, are not parameters here: gradients are exact."""
    config = vision_config(hf.Siglip2VisionConfig, img_size, depth, num_patches=64)
    model = hf.Siglip2VisionModel(config)
    embedding = model.embeddings.position_embedding
    rows = torch.randn(embedding.weight.shape, generator=torch.Generator().manual_seed(0))
    del embedding.weight
    embedding.register_buffer("weight", rows)
    return Patches(model, "pooler_output")


def paired_index(window: tuple[int, int]) -> torch.Tensor:
    """BEiT's index of pairs of positions, where patches 2i and 2i + 1 have the same position."""
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    index = BeitRelativePositionBias.generate_relative_position_index(window)
    places = torch.arange(len(index))
    places[2::2] = places[1::2]
    return index[places][:, places]


def beit(**fixed: Any) -> Callable[..., nn.Module]:
    def build(img_size: int, depth: int) -> nn.Module:
        config = vision_config(hf.BeitConfig, img_size, depth, **{"drop_path_rate": 0.0, **fixed})
        return Read(with_paired_positions(hf.BeitForImageClassification(config)), "logits")

    return build


def with_paired_positions(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "generate_relative_position_index"):
            module.generate_relative_position_index = paired_index
    return model


def resolution(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of BEiT's layers."""
    tower = model.model.beit
    shared = tower.shared_position_bias
    bias = None if shared is None else shared((8, 8)).detach()
    return {"attention_mask": bias, "resolution": (32, 32)}


def no_mask(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of CLIP's layers: they need a mask, which may be None."""
    return {"attention_mask": None}


def _case(
    name: str,
    config: Any = None,
    cls: Any = None,
    layers: str = "",
    prefix: int = 1,
    **known: Any,
) -> Case:
    """``known`` are fields of Case, or else of the configuration."""
    fields = {field: known.pop(field) for field in list(known) if field in Case.__annotations__}
    read, wrap = known.pop("read", "logits"), known.pop("wrap", Read)
    fields.setdefault("build", model_of(config, cls, read, wrap, **known))
    fields.setdefault("drops", "drop_path_rate" in known)
    return Case(f"transformers-{name}", TORCH, prefix=prefix, layers=f"model.{layers}", **fields)


_LAST = {"read": "last_hidden_state"}
_POOLED = {"read": "pooler_output"}
_CLIP: dict[str, Any] = {"given": no_mask, "layers": "encoder.layers", **_POOLED}
_SIGLIP: dict[str, Any] = {**_CLIP, "prefix": 0, "pooled": True}
_IDEFICS: dict[str, Any] = {**_CLIP, "prefix": 0, **_LAST}
_GIT: dict[str, Any] = {**_CLIP, **_LAST, "layers": "vision_model.encoder.layers"}
_BEIT: dict[str, Any] = {"layers": "beit.layers", "given": resolution, "pooled": True}
_BLIP: dict[str, Any] = {"exact": False, "layers": "encoder.layers", **_POOLED}
_DINO: dict[str, Any] = {"layers": "dinov2.encoder.layer", "pooled": True, "mlp_ratio": 2}
_DINOV3: dict[str, Any] = {"layers": "model.layer", "given": tables}
_INTERN: dict[str, Any] = {"layers": "encoder.layer", **_LAST}
_FILM: dict[str, Any] = {"wrap": Video, "num_frames": 2}
_MAE = {"wrap": Noiseless, "prop_attn": False, "mask_ratio": 0.0}
_VIDEO_MAE = {"layers": "videomae.encoder.layer", "prefix": 0, "pooled": True, "prop_attn": False}
_EAGER = {"attn_implementation": "eager"}

MORE = [
    _case("vit", hf.ViTConfig, hf.ViTForImageClassification, "vit.layers"),
    _case("deit", hf.DeiTConfig, hf.DeiTForImageClassificationWithTeacher, "deit.layers", 2),
    _case("mae", hf.ViTMAEConfig, hf.ViTMAEModel, "layers", **_MAE, **_LAST),
    _case("msn", hf.ViTMSNConfig, hf.ViTMSNForImageClassification, "vit.layers"),
    _case("ijepa", hf.IJepaConfig, hf.IJepaForImageClassification, "ijepa.layers", 0, pooled=True),
    _case(
        "vivit",
        hf.VivitConfig,
        hf.VivitForVideoClassification,
        "vivit.layers",
        tubelet_size=[2, 4, 4],
        **_FILM,
    ),
    _case("dinov2", hf.Dinov2Config, hf.Dinov2ForImageClassification, **_DINO),
    _case(
        "dinov2-swiglu",
        hf.Dinov2Config,
        hf.Dinov2Model,
        "encoder.layer",
        use_swiglu_ffn=True,
        drop_path_rate=0.5,
        mlp_ratio=2,
        **_POOLED,
    ),
    _case(
        "dinov2-registers",
        hf.Dinov2WithRegistersConfig,
        hf.Dinov2WithRegistersForImageClassification,
        prefix=5,
        num_register_tokens=4,
        **{**_DINO, "layers": "dinov2_with_registers.encoder.layer"},
    ),
    _case(
        "dinov3",
        build=dinov3(num_register_tokens=4, drop_path_rate=0.5),
        drops=True,
        prefix=5,
        **_DINOV3,
    ),
    _case(
        "dinov3-gated", build=dinov3(num_register_tokens=1, use_gated_mlp=True), prefix=2, **_DINOV3
    ),
    _case("clip", hf.CLIPVisionConfig, hf.CLIPVisionModel, **_CLIP),
    _case("metaclip2", hf.MetaClip2VisionConfig, hf.MetaClip2VisionModel, **_CLIP),
    _case("altclip", hf.AltCLIPVisionConfig, hf.AltCLIPVisionModel, **_CLIP),
    _case("chinese-clip", hf.ChineseCLIPVisionConfig, hf.ChineseCLIPVisionModel, **_CLIP),
    _case(
        "kosmos2",
        Kosmos2VisionConfig,
        Kosmos2VisionModel,
        **{**_CLIP, "layers": "model.encoder.layers"},
    ),
    _case("siglip", hf.SiglipVisionConfig, hf.SiglipVisionModel, **_SIGLIP),
    _case("siglip2", build=siglip2, **_SIGLIP),
    _case("idefics2", Idefics2VisionConfig, Idefics2VisionTransformer, **_IDEFICS),
    _case("idefics3", hf.Idefics3VisionConfig, hf.Idefics3VisionTransformer, **_IDEFICS),
    _case("smolvlm", hf.SmolVLMVisionConfig, hf.SmolVLMVisionTransformer, **_IDEFICS),
    _case("beit", build=beit(use_relative_position_bias=True), **_BEIT),
    _case("beit-shared", build=beit(use_shared_relative_position_bias=True), **_BEIT),
    _case(
        "beit-plain",
        build=beit(drop_path_rate=0.5, layer_scale_init_value=0.0),
        drops=True,
        **_BEIT,
    ),
    _case("videomae", hf.VideoMAEConfig, hf.VideoMAEForVideoClassification, **_VIDEO_MAE, **_FILM),
    _case("dpt", hf.DPTConfig, hf.DPTModel, "encoder.layer", **_POOLED),
    _case("internvl", hf.InternVLVisionConfig, hf.InternVLVisionModel, **_INTERN),
    _case("blip", hf.BlipVisionConfig, hf.BlipVisionModel, **_BLIP),
    _case("blip2", hf.Blip2VisionConfig, hf.Blip2VisionModel, **_BLIP),
    _case("instructblip", hf.InstructBlipVisionConfig, hf.InstructBlipVisionModel, **_BLIP),
    _case(
        "instructblipvideo",
        hf.InstructBlipVideoVisionConfig,
        hf.InstructBlipVideoVisionModel,
        **_BLIP,
    ),
]

#: What computes in float32 on the way, whatever its weights: eager attention and some norms.
SINGLE = [
    _case("vit-eager", hf.ViTConfig, hf.ViTForImageClassification, "vit.layers", **_EAGER),
    _case("dinov2-eager", hf.Dinov2Config, hf.Dinov2ForImageClassification, **_DINO, **_EAGER),
    _case("dinov3-eager", build=dinov3(num_register_tokens=4, **_EAGER), prefix=5, **_DINOV3),
    _case("clip-eager", hf.CLIPVisionConfig, hf.CLIPVisionModel, **_CLIP, **_EAGER),
    _case("siglip-eager", hf.SiglipVisionConfig, hf.SiglipVisionModel, **_SIGLIP, **_EAGER),
    _case(
        "smolvlm-eager", hf.SmolVLMVisionConfig, hf.SmolVLMVisionTransformer, **_IDEFICS, **_EAGER
    ),
    _case("git", GitVisionConfig, hf.GitVisionModel, **_GIT),
    _case("beit-eager", build=beit(use_relative_position_bias=True, **_EAGER), **_BEIT),
    _case(
        "videomae-eager",
        hf.VideoMAEConfig,
        hf.VideoMAEForVideoClassification,
        **_VIDEO_MAE,
        **_FILM,
        **_EAGER,
    ),
    _case(
        "internvl-eager",
        hf.InternVLVisionConfig,
        hf.InternVLVisionModel,
        use_qk_norm=True,
        norm_type="rms_norm",
        **_INTERN,
        **_EAGER,
    ),
    _case(
        "internvl-qk-norm",
        hf.InternVLVisionConfig,
        hf.InternVLVisionModel,
        use_qk_norm=True,
        **_INTERN,
    ),
]
