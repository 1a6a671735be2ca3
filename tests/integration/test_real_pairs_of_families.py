"""Law 7 beyond plain ViTs: MAE, CLIP, DINOv2 and BEiT, with the same weights in torch and in Paddle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import paddle
import pytest
import torch
import transformers as hf
from adapters.frameworks import PADDLE
from paddleclas.ppcls.arch.backbone.model_zoo import foundation_vit
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from vits import of_paddle, of_transformers
from vits.twins.paddlenlp.transformers.clip.modeling import CLIPVisionTransformer
from vits.twins.passl.models.dinov2.dinov2_vit import DINOv2VisionTransformer
from vits.twins.passl.models.mae import MAEVisionTransformer
from vits.twins.ppdiffusers.transformers.clip import modeling as ppdiffusers

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import parity

SIZES = {"img_size": 56, "patch_size": 4, "embed_dim": 48, "depth": 12, "num_heads": 4}
#: Paddle's kernel takes the epsilon of a norm in float32, where 1e-5 is not the 1e-5 of float64.
EPSILON = 2**-17


@dataclass
class Pair:
    """Two classes for one network.

    Args:
        torch: builds the one.
        paddle: builds the other.
        renamed: part of a name in torch -> what it is in Paddle, in this order.
        own: parameters that only Paddle's has, and does not use here.
    """

    torch: Callable[[], Any]
    paddle: Callable[[], Any]
    renamed: dict[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()


def foundation(name: str, **fixed: Any) -> Callable[[], Any]:
    known = {"class_num": 7, "qkv_bias": True, "conv_bias": True, **SIZES, **fixed}
    return lambda: foundation_vit.VisionTransformer(name, **known)


def timm_beit() -> Any:
    return Beit(
        num_classes=7,
        global_pool="token",
        use_abs_pos_emb=False,
        use_rel_pos_bias=True,
        init_values=0.1,
        **SIZES,
    )


def hf_clip() -> Any:
    config = hf.CLIPVisionConfig(
        image_size=56,
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_act="gelu",
    )
    return of_transformers.Read(hf.CLIPVisionModel(config), "pooler_output")


def paddlenlp_clip() -> Any:
    return of_paddle.Read(CLIPVisionTransformer(56, 4, 48, heads=4, depth=12, hidden=96))


def ppdiffusers_clip() -> Any:
    config = ppdiffusers.config(
        image_size=56,
        patch_size=4,
        hidden_size=48,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=96,
    )
    return of_paddle.Read(ppdiffusers.CLIPVisionTransformer(config))


def passl_dinov2() -> Any:
    return of_paddle.Read(DINOv2VisionTransformer(**SIZES))


_HEAD = {"head.": "head.fc_head."}
_CLIP = {
    "model.embeddings.patch_embedding": "model.conv1",
    "model.embeddings.position_embedding": "model.positional_embedding",
    "model.embeddings.": "model.",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "encoder.layers": "transformer.layers",
    "layer_norm": "norm",
    "mlp.fc": "linear",
}
PAIRS = {
    "MAE: timm, PaddleClas foundation_vit": Pair(
        partial(VisionTransformer, num_classes=7, **SIZES),
        foundation("MAE_vit_base_patch16"),
        _HEAD,
        own=("proj",),
    ),
    "MAE pooled: timm, PASSL": Pair(
        partial(VisionTransformer, num_classes=7, global_pool="avg", **SIZES),
        partial(MAEVisionTransformer, class_num=7, global_pool=True, qkv_bias=True, **SIZES),
    ),
    "CLIP: timm, PaddleClas foundation_vit": Pair(
        partial(VisionTransformer, num_classes=7, pre_norm=True, **SIZES),
        foundation("CLIP_vit_base_patch32_224", conv_bias=False),
        {**_HEAD, "norm_pre": "ln_pre"},
        own=("proj",),
    ),
    "CLIP: transformers, PaddleNLP": Pair(hf_clip, paddlenlp_clip, _CLIP),
    "CLIP: transformers, ppdiffusers": Pair(hf_clip, ppdiffusers_clip),
    "DINOv2: timm, PASSL": Pair(
        partial(VisionTransformer, num_classes=0, init_values=0.1, **SIZES),
        passl_dinov2,
        {"": "model."},
        own=("model.mask_token",),
    ),
    "BEiT v2: timm, PaddleClas foundation_vit": Pair(
        timm_beit, foundation("BEiTv2_vit_base_patch16_224"), _HEAD, own=("proj", "pos_embed")
    ),
}


def transfer(pair: Pair, source: Any, target: Any) -> None:
    """Load every weight, and find a place for every weight."""
    weights = {name: value.numpy() for name, value in source.state_dict().items()}
    for name in [name for name in weights if name.endswith("q_bias")]:  # BEiT has no bias of keys
        q, v = weights.pop(name), weights.pop(name.replace("q_bias", "v_bias"))
        weights[name.replace("q_bias", "qkv.bias")] = np.concatenate([q, np.zeros_like(q), v])
    layers, own = dict(target.named_sublayers()), dict(target.named_parameters())
    used = set()
    for name, value in weights.items():
        for old, new in pair.renamed.items():
            name = name.replace(old, new, 1)
        if name.endswith(("position_ids", "relative_position_index", "k_bias")):
            continue
        layer = layers.get(name.rpartition(".")[0])
        array = value.T if isinstance(layer, paddle.nn.Linear) and value.ndim == 2 else value
        assert tuple(own[name].shape) == array.shape, name
        PADDLE.assign(own[name], array)
        used.add(name)
    assert own.keys() - used <= {*pair.own}


def build(pair: Pair, dtype: str, prop_attn: bool) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    model_a, model_b = pair.torch(), pair.paddle()
    with torch.no_grad():
        for name, p in model_a.named_parameters():
            noise = 0.1 * torch.randn(p.shape, generator=generator)
            p.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    for module in model_a.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = EPSILON
    for layer in model_b.sublayers():
        if isinstance(layer, paddle.nn.LayerNorm):
            layer._epsilon = EPSILON
    model_a.to(getattr(torch, dtype)).eval()
    model_b = PADDLE.double(model_b) if dtype == "float64" else PADDLE.single(model_b)
    model_b.eval()
    transfer(pair, model_a, model_b)
    tomecore.adapters.torch.apply_patch(model_a, prop_attn=prop_attn, trace_source=True)
    tomecore.adapters.paddle.apply_patch(model_b, prop_attn=prop_attn, trace_source=True)
    return model_a, model_b


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(
    ("r", "prop_attn"), [(8, True), (8, False), ((12, -1.0), True), ([5, 0, 30, 3], True)], ids=str
)
def test_float64(kind: str, r: Any, prop_attn: bool) -> None:
    model_a, model_b = build(PAIRS[kind], "float64", prop_attn)
    model_a.r = model_b.r = r
    images = np.random.default_rng(1).standard_normal((2, 3, 56, 56))
    report = parity.compare(model_a, model_b, images)
    assert report.layers
    assert report.identical_decisions == 1
    assert np.abs(report.outputs[0]).max() > 1e-3
    assert report.largest_difference < 1e-11
    assert model_a.tome.tokens == model_b.tome.tokens
    assert np.array_equal(model_a.tome.sizes.numpy(), model_b.tome.sizes.numpy())
    assert np.array_equal(model_a.tome.source.numpy(), model_b.tome.source.numpy())


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("kind", PAIRS)
def test_float32(kind: str) -> None:
    model_a, model_b = build(PAIRS[kind], "float32", True)
    model_a.r = model_b.r = 16
    images = np.random.default_rng(1).standard_normal((24, 3, 56, 56))
    report = parity.compare(model_a, model_b, images)
    assert report.largest_difference_agreeing < 1e-5
    assert report.largest_gap < 1e-5
    assert report.identical_decisions > 0.9
