"""Code that all families of Hugging Face transformers share.

Layers call ``attention(x, attention_mask=...)``, which passes queries, keys, values and mask to the kernel
named by ``config._attn_implementation``; the key is the output of the layer's own projection. Layers
get all keyword arguments of the model's call, including flags for its outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Anatomy, Kwargs, Projected, Trim, qualified_name
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.families.attention import (
    ProjectedAttention,
    attend_heads,
    separate_qkv,
    trim_with,
)
from tomecore.backends import Array, Bias, Tokens
from tomecore.errors import UnsupportedModelError

__all__ = [
    "FLAGS",
    "MASKED",
    "READERS",
    "anatomy_of",
    "attend_rows",
    "class_and_registers",
    "hidden_states_wanted",
    "hooked_by_others",
    "is_recorded",
    "no_mask",
    "no_prefix",
    "of",
    "one_prefix_token",
    "trim_of",
    "where_pooled",
    "with_bias",
]

#: arguments that do not describe tokens, so they are valid for merged tokens too
FLAGS = (
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "num_items_in_batch",
    "interpolate_pos_encoding",
)
#: arguments of layers that accept a mask, in order
MASKED = ("attention_mask", *FLAGS)

#: kernels that can add a bias with one number for each key to the attention scores
_WITH_BIAS = ("sdpa", "eager")

_POOLS = "pools over tokens, and would count a merged token once instead of as often as its size"
_LAYS_OUT = "lays tokens out as the image they came from"


def of(module: str, *classes: str) -> tuple[str, ...]:
    """Return the full names of classes of one model of transformers."""
    return tuple(f"transformers.models.{module}.modeling_{module}.{cls}" for cls in classes)


#: models around a tower that need all of its tokens -> why
READERS = {
    **dict.fromkeys(
        (
            *of("ijepa", "IJepaForImageClassification"),
            *of("dinov2", "Dinov2ForImageClassification"),
            *of("dinov2_with_registers", "Dinov2WithRegistersForImageClassification"),
            *of("clip", "CLIPForImageClassification"),
            *of("metaclip_2", "MetaClip2ForImageClassification"),
            *of("siglip", "SiglipForImageClassification"),
            *of("siglip2", "Siglip2ForImageClassification"),
        ),
        _POOLS,
    ),
    **dict.fromkeys(
        (
            *of("vit", "ViTForMaskedImageModeling"),
            *of("deit", "DeiTForMaskedImageModeling"),
        ),
        _LAYS_OUT,
    ),
}


def with_bias(attention: Any, bias: Array | None, block_kwargs: Kwargs) -> Kwargs:
    """Return arguments for ``attention`` with which it adds ``bias`` to its scores."""
    if bias is None:
        return block_kwargs
    kernel = attention.config._attn_implementation
    if kernel not in _WITH_BIAS:
        raise UnsupportedModelError(
            f"the model attends by {kernel!r}, which cannot add the sizes of merged tokens (or leave "
            "out padding) to its scores. Call model.set_attn_implementation('sdpa'), or patch with "
            "prop_attn=False if there is no padding."
        )
    mask = block_kwargs.get("attention_mask")
    return {**block_kwargs, "attention_mask": bias if mask is None else mask + bias}


def no_mask(host: Host, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    """Return ``block_kwargs`` without a mask that the library adds; raise for a user's mask.

    It is the ``Spec.carry`` of layers with no other argument about tokens. While torch.export traces, the
    library builds a mask even if none was passed: one value for each query, expanded over the keys. Such a
    mask does not describe keys, and is removed.
    """
    mask = block_kwargs.get("attention_mask")
    if mask is None:
        return block_kwargs
    if mask.stride(-1) == 0:
        return {name: value for name, value in block_kwargs.items() if name != "attention_mask"}
    raise UnsupportedModelError(
        "a layer was called with attention_mask=, which describes all tokens while merging leaves "
        "fewer. Call the model without it, or set model.r = 0 (without trim_last) for such calls. "
        "(torch.export adds one with attn_implementation='eager': export with 'sdpa'.)"
    )


def hidden_states_wanted(tower: Any) -> bool:
    """Whether the output of every layer is recorded in this forward pass."""
    return is_recorded("hidden_states")


def attentions_wanted(tower: Any) -> bool:
    """Whether attention maps are recorded in this forward pass."""
    return is_recorded("attentions")


def hooked_by_others(host: Host, attention: Any) -> bool:
    """Whether ``attention`` has a hook on its forward that is not the library's own recorder."""
    if not host.hooked(attention):
        return False
    if attention._backward_hooks or attention._backward_pre_hooks or attention._forward_pre_hooks:
        return True
    for hook in attention._forward_hooks.values():
        if getattr(hook, "__module__", None) != "transformers.utils.output_capturing":
            return True
    return False


def attend_rows(
    host: Host,
    attention: ProjectedAttention,
    y: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    rows: int,
) -> Tokens:
    """Return ``attention`` of the first ``rows`` tokens of y, (B, rows, C), by the fused kernel."""
    q, k, v, scale = qkv(host, attention, y, block_kwargs, rows)
    dropout = either(attention, "attention_dropout", "dropout") if attention.training else 0.0
    out = attend_heads(host, (q, k, v), bias, dropout, scale)
    return either(attention, "o_proj", "out_proj")(out)


def qkv(
    host: Host, attention: ProjectedAttention, y: Tokens, block_kwargs: Kwargs, rows: int | None
) -> Projected:
    """Return q, k, v and the scale of an attention with ``q_proj``, ``k_proj``, ``v_proj`` and ``head_dim``.

    Rotary tables have no rows for prefix tokens, so queries of the first ``rows`` tokens are not rotated.
    """
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    q, k, v = separate_qkv(projections, y, attention.head_dim, rows)
    tables = block_kwargs.get("position_embeddings")
    if tables is not None:
        k = apply_rotary(attention, k, tables)
        q = apply_rotary(attention, q, tables) if rows is None else q
    return q, k, v, either(attention, "scaling", "scale")


def apply_rotary(attention: Any, x: Array, tables: tuple[Array, Array]) -> Array:
    """Return x (B, N, H, D), rotated by the library's own function with ``tables`` of cos and sin."""
    rotate = sys.modules[original_class(attention).__module__].apply_rotary_pos_emb
    x = x.transpose(1, 2)
    y: Array = rotate(x[:, :1], x, *tables)[1].transpose(1, 2)
    return y


def either(module: Any, name: str, other: str) -> Any:
    """Return the attribute ``name`` of ``module``, which some classes call ``other``."""
    return getattr(module, name) if hasattr(module, name) else getattr(module, other)


def anatomy_of(
    attend: Callable[..., Any],
    path: str,
    norm: str,
    classes: tuple[str, ...],
    output: str = "o_proj",
) -> Anatomy:
    """Return the anatomy of layers with an attention of these classes at ``path``; see :class:`Anatomy`."""
    parts = ("q_proj", "k_proj", "v_proj", output)
    return Anatomy(attend, path, norm, qkv, dict.fromkeys(classes, parts))


def why_not_rows(attention: Any) -> str | None:
    """Return why :func:`attend_rows` would differ from ``attention``, or None."""
    kernel = attention.config._attn_implementation
    if kernel not in _WITH_BIAS:
        return (
            f"the model attends by {kernel!r}, and the form for prefix tokens is written for "
            f"{' and '.join(map(repr, _WITH_BIAS))}: call model.set_attn_implementation('sdpa')"
        )
    return None


def trim_of(anatomy: Anatomy, **known: Any) -> Trim:
    """Return the trimmed form of layers with this anatomy; see :class:`Trim`."""
    keys = {f"{anatomy.attention}.{name}": 1 for name in ("k_proj", "v_proj")}
    return trim_with(anatomy, keys=keys, refuse=why_not_rows, watched=attentions_wanted, **known)


def is_recorded(what: str) -> bool:
    """Whether transformers records ``what`` ("hidden_states" or "attentions") in this forward pass.

    Its hooks on layers read one variable, which a model sets while it runs; so does this function.
    """
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collected = None if capturing is None else capturing._active_collector.get()
    return collected is not None and what in collected


def no_prefix(tower: Any) -> int:
    """Return 0: the tower has no prefix tokens."""
    return 0


def one_prefix_token(tower: Any) -> int:
    """Return 1, for the class token."""
    return 1


def class_and_registers(tower: Any) -> int:
    """Return the number of class and register tokens."""
    return 1 + (getattr(tower.config, "num_register_tokens", 0) or 0)


def where_pooled(tower: Any) -> str | None:
    """Return why a tower that pools over its tokens needs all of them, or None."""
    head = getattr(tower, "head", None)
    mean = getattr(tower.config, "use_mean_pooling", False)
    if head is not None or (mean and getattr(tower, "pooler", tower) is not None):
        what = qualified_name(original_class(tower if head is None else head))
        return f"{what} {_POOLS}"
    return None
