"""The models of Paddle's libraries, built small with random weights: one line per kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from adapters.cases import TINY, Case
from adapters.frameworks import PADDLE
from paddleclas.ppcls.arch.backbone.model_zoo import distilled_vision_transformer as clas_distilled
from paddleclas.ppcls.arch.backbone.model_zoo import foundation_vit as foundation
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas
from paddleseg.models.backbones.cae import CAE
from paddleseg.models.backbones.vision_transformer import VisionTransformer as SegViT
from ppim.models import deit as ppim_deit
from ppim.models import vit as ppim_vit

from vits.twins.paddlenlp.transformers.clip.modeling import CLIPVisionTransformer
from vits.twins.passl.models import deit, mae
from vits.twins.passl.models import vision_transformer as passl
from vits.twins.passl.models.dino.dino_vit import DINOVisionTransformer
from vits.twins.passl.models.dinov2.dinov2_vit import DINOv2VisionTransformer
from vits.twins.ppdiffusers.transformers.clip import modeling as ppdiffusers

__all__ = ["MORE", "PLAIN", "foundation_model", "ppim_plain"]


def paddle_model(cls: Any, classes: str = "class_num", **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls(**{**TINY, classes: 7, "qkv_bias": True, **fixed, **sizes})

    return build


def ppim_plain(class_num: int, **arguments: Any) -> Any:
    return ppim_vit.VisionTransformer(class_dim=class_num, **arguments)


def _paddle(name: str, build: Callable[..., Any], prefix: int = 1, **known: Any) -> Case:
    return Case(name, PADDLE, build, prefix, exact=False, **known)


PLAIN = [
    _paddle(
        "paddleclas-plain", paddle_model(clas.VisionTransformer), golden=clas.VisionTransformer
    ),
    _paddle("paddleclas-scaled", paddle_model(clas.VisionTransformer, qk_scale=32**-0.5)),
    _paddle(
        "paddleclas-drop-path",
        paddle_model(clas.VisionTransformer, drop_path_rate=0.5),
        drops=True,
    ),
    _paddle("paddleclas-distilled", paddle_model(clas_distilled.DistilledVisionTransformer), 2),
    _paddle("ppim-plain", paddle_model(ppim_vit.VisionTransformer, "class_dim"), golden=ppim_plain),
    _paddle("ppim-distilled", paddle_model(ppim_deit.DistilledVisionTransformer, "class_dim"), 2),
]


class Read(paddle.nn.Layer):
    """One tensor of what a model returns: of tuples the last, of lists all."""

    def __init__(self, model: Any, **always: Any) -> None:
        super().__init__()
        self.model = model
        self.always = always

    def forward(self, images: Any) -> Any:
        out = self.model(images, **self.always)
        if isinstance(out, dict):
            return out["x_norm_clstoken"]
        return out[-1] if isinstance(out, tuple) else out


class Grids(Read):
    """The tokens of every block, which PaddleSeg's backbones return, side by side."""

    def forward(self, images: Any) -> Any:
        return paddle.concat(self.model(images)[0], axis=-1)


def with_paired_positions(model: Any) -> Any:
    """Put patches 2i and 2i + 1 at the same position, so that twins share it."""
    for layer in model.sublayers():
        if getattr(layer, "relative_position_index", None) is not None:
            index = layer.relative_position_index
            places = list(range(index.shape[0]))
            places[2::2] = places[1::2]
            places = paddle.to_tensor(places)
            layer.relative_position_index = index[places][:, places]
    return model


class SharedBias(paddle.nn.Layer):
    """In place of PaddleSeg's, whose constructor misspells an argument of ``create_parameter``."""

    def __init__(self, index: Any) -> None:
        super().__init__()
        self.table = self.create_parameter([int(index.max()) + 1, TINY["num_heads"]])
        self.register_buffer("index", index)

    def forward(self) -> Any:
        side = self.index.shape[0]
        rows = self.table[self.index.reshape([-1])]
        return rows.reshape([side, side, -1]).transpose([2, 0, 1])


class SegmentationViT(SegViT):
    def init_weight(self) -> None:
        """PaddleSeg loads weights from a file here, and needs one."""


class SegmentationCAE(CAE):
    def init_weight(self) -> None:
        """As above."""


def foundation_model(name: str, **fixed: Any) -> Callable[..., Any]:
    """A model of PaddleClas' foundation_vit, which knows its kind by its name."""

    def build(**sizes: Any) -> Any:
        known = {**TINY, "class_num": 7, "qkv_bias": True, **fixed, **sizes}
        return with_paired_positions(foundation.VisionTransformer(name, **known))

    return build


def twin(cls: Any, wrap: Any = None, always: Any = None, **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        model = cls(**{**TINY, **fixed, **sizes})
        return model if wrap is None else wrap(model, **(always or {}))

    return build


def dino(img_size: int, depth: int) -> Any:
    return DINOVisionTransformer([img_size], depth=depth, drop_path_rate=0.5, **TINY)


def clip(img_size: int, depth: int) -> Any:
    return Read(CLIPVisionTransformer(img_size, 4, 32, heads=4, depth=depth, hidden=48))


def ppdiffusers_clip(img_size: int, depth: int) -> Any:
    config = ppdiffusers.config(
        image_size=img_size,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=48,
    )
    return Read(ppdiffusers.CLIPVisionTransformer(config))


def no_masks(model: Any, x: Any) -> dict[str, Any]:
    return {"attention_mask": None, "causal_attention_mask": None}


def unicom(**sizes: Any) -> Any:
    """Without its batch norms, whose running variance would be random, and so negative."""
    kind = {"feature_frame": True, "return_embed": True, "conv_bias": True, "output_dim": 7}
    model = foundation_model("CLIP_vit_base_patch32_224", **kind)(**sizes)
    model.feature = paddle.nn.Sequential(model.feature[0], model.feature[2])
    return model


def backbone(cls: Any, shared: bool = False, **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        model = with_paired_positions(cls(**{**TINY, "qkv_bias": True, **fixed, **sizes}))
        if shared:
            model.rel_pos_bias = SharedBias(model.blocks[0].attn.relative_position_index)
        return Grids(model)

    return build


def shared_bias(model: Any, x: Any) -> dict[str, Any]:
    return {"rel_pos_bias": model.model.rel_pos_bias().detach()}


_SEG: dict[str, Any] = {"layers": "model.blocks", "dense": True, "pooled": True}
_BIAS = "BEiTv2_vit_base_patch16_224"

MORE = [
    _paddle("foundation-clip", foundation_model("CLIP_vit_base_patch32_224")),
    _paddle(
        "foundation-clip-16",
        foundation_model("CLIP_vit_base_patch16_224", drop_path_rate=0.5),
        pooled=True,
        drops=True,
    ),
    _paddle("foundation-mae", foundation_model("MAE_vit_base_patch16"), prop_attn=False),
    _paddle("foundation-eva", foundation_model("EVA_vit_giant_patch14", qk_scale=0.2)),
    _paddle("foundation-beit", foundation_model(_BIAS)),
    _paddle("foundation-cae", foundation_model("CAE_vit_base_patch16_224", class_num=0)),
    _paddle("foundation-unicom", unicom, prefix=0, pooled=True),
    _paddle(
        "passl-vit", twin(passl.VisionTransformer, class_num=7, drop_path_rate=0.5), drops=True
    ),
    _paddle("passl-deit", twin(deit.DeitVisionTransformer, class_num=7)),
    _paddle("passl-distilled", twin(deit.DistilledVisionTransformer, class_num=7), prefix=2),
    _paddle("passl-mae", twin(mae.MAEVisionTransformer, class_num=7), prop_attn=False),
    _paddle(
        "passl-mae-pooled",
        twin(mae.MAEVisionTransformer, class_num=7, global_pool=True),
        prop_attn=False,
        pooled=True,
    ),
    _paddle(
        "passl-mae-pretraining",
        twin(mae.MaskedAutoencoderViT, Read, {"mask_ratio": 0.0}),
        prop_attn=False,
        pooled=True,
        layers="model.blocks",
    ),
    _paddle("passl-dino", dino, drops=True),
    _paddle("passl-dinov2", twin(DINOv2VisionTransformer, Read), layers="model.blocks"),
    _paddle(
        "passl-dinov2-swiglu",
        twin(DINOv2VisionTransformer, Read, ffn_layer="swiglu", layer_scale=False),
        layers="model.blocks",
    ),
    _paddle("paddlenlp-clip", clip, layers="model.transformer.layers"),
    _paddle("ppdiffusers-clip", ppdiffusers_clip, layers="model.encoder.layers", given=no_masks),
    _paddle("paddleseg-vit", backbone(SegmentationViT, drop_path_rate=0.5), drops=True, **_SEG),
    _paddle(
        "paddleseg-cae", backbone(SegmentationCAE, use_rel_pos_bias=True, init_values=0.1), **_SEG
    ),
    _paddle(
        "paddleseg-cae-shared",
        backbone(SegmentationCAE, shared=True, use_rel_pos_bias=True),
        given=shared_bias,
        **_SEG,
    ),
]
