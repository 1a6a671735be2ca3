"""The attention of the class token, from one query row; some matchings weigh tokens by it."""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Spec, attribute, qualified_name
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.engine.trim import why_other_attention
from tomecore.backends import Array
from tomecore.core.plan import compute_dtype
from tomecore.errors import UnsupportedModelError

__all__ = ["check_class_attention", "class_attention"]

_INSTEAD = (
    "Use a matching that needs no class token, such as matching='tome', or describe the attention with "
    "Spec(anatomy=...) and register()."
)


def check_class_attention(host: Host, spec: Spec, tower: Any, block: Any) -> None:
    """Raise unless :func:`class_attention` is available for the blocks of ``tower``.

    Args:
        host: the framework.
        spec: the family of the blocks.
        tower: the module that owns them.
        block: one of them.

    Raises:
        UnsupportedModelError: the family has no anatomy, the model has no class token, or the anatomy does
            not describe its attention.
    """
    anatomy, name = spec.anatomy, qualified_name(original_class(tower))
    if anatomy is None:
        reason: str | None = f"tomecore has no anatomy of the attention of {spec.family}"
    elif spec.prefix(tower) == 0:
        reason = "it has no class token"
    else:
        reason = why_other_attention(host, attribute(block, anatomy.attention), anatomy.classes)
    if reason is not None:
        raise UnsupportedModelError(
            f"the attention of the class token is not available for this {name}: {reason}. {_INSTEAD}"
        )


def class_attention(
    host: Host, spec: Spec, block: Any, x: Array, bias: Array | None, given: dict[str, Any]
) -> Array:
    """Return the weights with which the first token attends to each token, averaged over heads.

    It computes one query row, so it costs the projections to keys and values, and no N x N scores. Dropout
    of the weights is left out.

    Args:
        host: the framework.
        spec: the family of the block; :func:`check_class_attention` checks whether this is possible for it.
        block: the block.
        x: the tokens that enter it, (B, N, C).
        bias: the bias that is added to the scores of each key, (B, 1, 1, N), or None.
        given: the block's other arguments, as ``Spec.attend`` gets them.

    Returns:
        (B, N), float32 or, for float64 tokens, float64; each row sums to 1.

    Raises:
        UnsupportedModelError: the family has no anatomy.
    """
    anatomy = spec.anatomy
    if anatomy is None:
        raise UnsupportedModelError(
            "the attention of the class token is not available: tomecore has no anatomy of the attention of "
            f"{spec.family}. {_INSTEAD}"
        )
    xp = host.backend().xp
    y = attribute(block, anatomy.norm)(x) if anatomy.norm else x
    q, k, _, scale = anatomy.qkv(host, attribute(block, anatomy.attention), y, given, 1)
    dtype = compute_dtype(xp, q.dtype)
    q, k = xp.astype(q, dtype, copy=False), xp.astype(k, dtype, copy=False)
    # (B, H, N, D) x (B, H, D, 1)
    scores = xp.matmul(xp.permute_dims(k, (0, 2, 1, 3)), xp.permute_dims(q, (0, 2, 3, 1)))
    scores = scores[:, :, :, 0] * scale
    if bias is not None:
        scores = scores + xp.astype(bias[:, :, 0], dtype, copy=False)
    weights = xp.exp(scores - xp.max(scores, axis=2, keepdims=True))
    weights = weights / xp.sum(weights, axis=2, keepdims=True)
    return xp.mean(weights, axis=1)
