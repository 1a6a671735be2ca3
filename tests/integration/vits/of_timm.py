"""timm's models, built small with random weights: one line per kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from adapters.cases import TINY, Case
from adapters.frameworks import TORCH
from timm.layers import Attention, DiffAttention, LayerNorm, RmsNorm, SwiGLU
from timm.models import vision_transformer
from timm.models.beit import Beit
from timm.models.deepseek_vit import DeepseekVitClassifier
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.gemma4_vit import Gemma4VitClassifier
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch import nn

__all__ = ["MORE", "PLAIN", "timm_model"]


def timm_model(cls: Any = VisionTransformer, **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls(**{**TINY, "num_classes": 7, **fixed, **sizes})

    return build


def unfused(**sizes: Any) -> Any:
    """timm's attention as it runs where no fused kernel is to be used."""
    model = timm_model()(**sizes)
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def gated(**sizes: Any) -> Any:
    model = timm_model()(**sizes)
    for block in model.blocks:
        block.attn = Attention(32, num_heads=4, qkv_bias=True, gated=True)
    return model


def _timm(name: str, prefix: int = 1, pooled: bool = False, **fixed: Any) -> Case:
    drops = "drop_path_rate" in fixed
    return Case(f"timm-{name}", TORCH, timm_model(**fixed), prefix, pooled, drops=drops)


#: The anatomy that ``adapters/explicit.py`` writes out.
PLAIN = [
    Case("timm-plain", TORCH, timm_model(), golden=VisionTransformer),
    Case("timm-distilled", TORCH, timm_model(VisionTransformerDistilled), prefix=2),
    Case("timm-unfused", TORCH, unfused),
    Case("timm-gated", TORCH, gated),
    _timm("layer-scale", init_values=0.1),
    _timm("qk-norm", qk_norm=True),
    _timm("scale-attn-norm", scale_attn_norm=True),
    _timm("registers", prefix=5, reg_tokens=4),
    _timm("no-embed-class", prefix=3, reg_tokens=2, no_embed_class=True),
    _timm("dynamic", dynamic_img_size=True),
    _timm("drop-path", drop_path_rate=0.5),
    _timm("rms-swiglu", norm_layer=RmsNorm, mlp_layer=SwiGLU, act_layer=nn.SiLU, pre_norm=True),
    _timm("average", prefix=0, pooled=True, class_token=False, global_pool="avg"),
    _timm("average-registers", prefix=5, pooled=True, reg_tokens=4, global_pool="avg"),
    _timm("map", prefix=0, pooled=True, class_token=False, global_pool="map"),
]


def paired(rows: Any) -> Any:
    """Rows of positions in which each second position is the one before it, so that twins share one."""
    return rows[..., ::2, :].repeat_interleave(2, dim=-2)


def rope(model: Any, x: Any) -> dict[str, Any]:
    tower = getattr(model, "encoder", model)
    table = tower.rope.get_embed(shape=(8, 8)).to(x)
    return {"rope": paired(table[0] if table.ndim == 4 else table).detach()}


def rope_of_gemma(model: Any, x: Any) -> dict[str, Any]:
    grid = torch.cartesian_prod(torch.arange(8), torch.arange(8)).expand(len(x), -1, -1)
    cos, sin = model.encoder.rotary_emb(x, grid)
    return {"rope_cos": paired(cos), "rope_sin": paired(sin), "attn_mask": None}


def shared_bias(model: Any, x: Any) -> dict[str, Any]:
    """Return the arguments of towers with one table for all blocks."""
    if isinstance(model, Beit):
        return {"shared_rel_pos_bias": model.rel_pos_bias().detach()}
    return {"shared_rel_pos": model.shared_rel_pos.get_bias().detach()}


def biased(cls: Any, **fixed: Any) -> Callable[..., Any]:
    """Return a builder of a model with position biases, whose positions come in equal pairs."""

    def build(**sizes: Any) -> Any:
        model = timm_model(cls, **fixed)(**sizes)
        n0 = model.patch_embed.num_patches + model.num_prefix_tokens
        places = torch.arange(n0)
        patches = places[model.num_prefix_tokens :]
        patches[1::2] = patches[::2]
        for module in model.modules():
            index = getattr(module, "relative_position_index", None)
            if index is not None:
                side = n0 if index.numel() == n0**2 else n0 - model.num_prefix_tokens
                here = places[n0 - side :] - (n0 - side)
                index.copy_(index.view(side, side)[here][:, here].reshape(index.shape))
                for (
                    dropout
                ) in module.modules():  # one in the making of biases drops more than paths
                    if isinstance(dropout, nn.Dropout):
                        dropout.p = 0.0
        return model

    return build


def differential(**sizes: Any) -> Any:
    """With the lambdas that are not rounded to float32 on their way, for finite differences."""
    model = timm_model(init_values=0.1)(**sizes)
    for depth, block in enumerate(model.blocks):
        block.attn = DiffAttention(
            32, 4, True, qk_norm=True, norm_layer=LayerNorm, depth=depth, dual_lambda=True
        )
    return model


def gated_naflex(**sizes: Any) -> Any:
    fixed = {"rope_type": "axial", "attn_gated": True, "qkv_fused": False, "num_kv_heads": 2}
    return timm_model(NaFlexVit, class_token=True, reg_tokens=2, **fixed)(**sizes)


def _more(name: str, cls: Any, prefix: int = 1, **known: Any) -> Case:
    """``known`` are fields of Case, or else arguments of ``cls``."""
    fields = {field: known.pop(field) for field in list(known) if field in Case.__annotations__}
    fields.setdefault("build", timm_model(cls, **known))
    fields.setdefault("drops", "drop_path_rate" in known)
    return Case(f"timm-{name}", TORCH, prefix=prefix, **fields)


_ROPE: dict[str, Any] = {"pooled": True, "given": rope, "use_rot_pos_emb": True}
_EVA02 = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
_DINOV3 = {"attn_type": "rope", "rope_type": "dinov3", "rope_rotate_half": True, "init_values": 0.1}
_GRID: dict[str, Any] = {"layers": "encoder.blocks", "prefix": 0, "pooled": True}
_THINGS = {"block_fn": vision_transformer.ParallelThingsBlock}
_PARALLEL = {"block_fn": vision_transformer.ParallelScalingBlock}
_DIFF = {"block_fn": partial(vision_transformer.DiffParallelScalingBlock, dual_lambda=True)}
_POST = {"block_fn": vision_transformer.ResPostBlock}
_SHARED: dict[str, Any] = {"pooled": True, "given": shared_bias}

#: Other blocks.
MORE = [
    _more("diff", VisionTransformer, build=differential),
    _more("post-norm", VisionTransformer, **_POST, drop_path_rate=0.5),
    _more("things", VisionTransformer, **_THINGS, init_values=0.1, drop_path_rate=0.9),
    _more("parallel", VisionTransformer, **_PARALLEL, qk_norm=True, init_values=0.1),
    _more("parallel-drop-path", VisionTransformer, **_PARALLEL, drop_path_rate=0.5),
    _more("diff-parallel", VisionTransformer, **_DIFF, qk_norm=True, init_values=0.1),
    _more("eva", Eva, pooled=True, init_values=0.1, drop_path_rate=0.5),
    _more("eva02", Eva, **_ROPE, **_EVA02),
    _more("eva-post-norm", Eva, **_ROPE, use_post_norm=True, drop_path_rate=0.5),
    _more("dinov3", Eva, prefix=5, **_ROPE, **_DINOV3, num_reg_tokens=4, use_abs_pos_emb=False),
    _more("pe", Eva, **_ROPE, attn_type="rope", rope_grid_offset=1.0, rope_grid_indexing="xy"),
    _more("rope-mixed", Eva, rounds=True, **_ROPE, attn_type="rope", rope_type="mixed"),
    _more("mrope", Eva, **_ROPE, attn_type="rope", rope_type="mrope", rope_mrope_section=(0, 2, 2)),
    _more("grouped-query", Eva, **_ROPE, attn_type="rope", qkv_fused=False, num_kv_heads=2),
    _more("beit", Beit, pooled=True, build=biased(Beit, use_rel_pos_bias=True, init_values=0.1)),
    _more("beit-plain", Beit, pooled=True, qkv_bias=False, drop_path_rate=0.5),
    _more("beit-shared", Beit, **_SHARED, build=biased(Beit, use_shared_rel_pos_bias=True)),
    _more(
        "rel-pos", VisionTransformerRelPos, 0, pooled=True, build=biased(VisionTransformerRelPos)
    ),
    _more(
        "rel-pos-shared",
        VisionTransformerRelPos,
        **_SHARED,
        build=biased(
            VisionTransformerRelPos,
            shared_rel_pos=True,
            class_token=True,
            rel_pos_type="bias",
            qk_norm=True,
        ),
    ),
    _more(
        "rel-pos-post-norm",
        VisionTransformerRelPos,
        prefix=0,
        pooled=True,
        drops=True,
        build=biased(VisionTransformerRelPos, block_fn=ResPostRelPosBlock, drop_path_rate=0.5),
    ),
    _more("naflex", NaFlexVit, prefix=0, rounds=True, pooled=True),
    _more("naflex-rope", NaFlexVit, 3, rounds=True, pooled=True, given=rope, build=gated_naflex),
    _more("qwen3", Qwen3VitClassifier, **_GRID, given=rope),
    _more("deepseek", DeepseekVitClassifier, rounds=True, **_GRID, given=rope),
    _more(
        "gemma4",
        Gemma4VitClassifier,
        **_GRID,
        given=rope_of_gemma,
        num_heads=2,
        head_dim=16,
        position_embedding_size=64,  # of 10240, which are looked up by a product with one-hot rows
    ),
]
