"""The attention of the class token, from one query row; some matchings weigh tokens by it."""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.contract import why_no_anatomy
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, Spec, attribute, qualified_name
from tomecore.adapters.engine.swap import original_class
from tomecore.backends import Array, Bias, Tokens
from tomecore.core.plan import compute_dtype
from tomecore.errors import UnsupportedModelError

__all__ = ["check_class_attention", "check_values", "weights_and_values"]

_INSTEAD = (
    "Use a matching that needs no class token, such as matching='tome', or describe the attention with "
    "Spec(anatomy=...) and register()."
)


def check_class_attention(host: Host, spec: Spec, tower: Any, block: Any) -> None:
    """Raise unless the attention of the class token is available for the blocks of ``tower``.

    Args:
        host: the framework.
        spec: the family of the blocks.
        tower: the module that owns them.
        block: one of them.

    Raises:
        UnsupportedModelError: the family has no anatomy, the model has no class token, or the anatomy does
            not describe its attention.
    """
    reason = "it has no class token" if spec.prefix(tower) == 0 else None
    _refuse(
        "the attention of the class token", spec, tower, why_no_anatomy(host, spec, block) or reason
    )


def check_values(host: Host, spec: Spec, tower: Any, block: Any) -> None:
    """Raise unless the values are available for the blocks of ``tower``.

    Raises:
        UnsupportedModelError: the family has no anatomy, or it does not describe the attention.
    """
    _refuse("the attention's values", spec, tower, why_no_anatomy(host, spec, block))


def _refuse(what: str, spec: Spec, tower: Any, reason: str | None) -> None:
    if reason is None:
        return
    name = qualified_name(original_class(tower))
    raise UnsupportedModelError(f"{what} is not available for this {name}: {reason}. {_INSTEAD}")


def weights_and_values(
    host: Host, spec: Spec, block: Any, x: Tokens, bias: Bias | None, given: Kwargs
) -> tuple[Array, Array]:
    """Return the weights with which the first token attends to each token, and the values.

    They come from one projection. The weights are those of one query row, without N x N scores and without
    dropout.

    Args:
        host: the framework.
        spec: the family of the block; :func:`check_class_attention` checks whether this is possible for it.
        block: the block.
        x: the tokens that enter it, (B, N, C).
        bias: the bias that is added to the scores of each key, (B, 1, 1, N), or None.
        given: the block's other arguments, as ``Spec.attend`` gets them.

    Returns:
        The weights (B, N), averaged over heads, float32 or, for float64 tokens, float64; each row sums to 1.
        The values (B, H, N, D).

    Raises:
        UnsupportedModelError: the family has no anatomy.
    """
    anatomy, xp = spec.anatomy, host.backend().xp
    if anatomy is None:
        raise UnsupportedModelError(
            "queries, keys and values are not available: tomecore has no anatomy of the attention of "
            f"{spec.family}. {_INSTEAD}"
        )
    y = attribute(block, anatomy.norm)(x) if anatomy.norm else x
    q, k, v, scale = anatomy.qkv(host, attribute(block, anatomy.attention), y, given, 1)
    dtype = compute_dtype(xp, q.dtype)
    q, k = xp.astype(q, dtype, copy=False), xp.astype(k, dtype, copy=False)
    # Not matmul, which autocast runs in half precision: (B x H, N, D) x (B x H, 1, D)
    heads, width = k.shape[2], k.shape[3]
    k = xp.reshape(xp.permute_dims(k, (0, 2, 1, 3)), (-1, k.shape[1], width))
    q = xp.reshape(xp.permute_dims(q, (0, 2, 1, 3)), (-1, 1, width))
    scores = host.backend().products(k, q)
    scores = xp.reshape(scores, (-1, heads, k.shape[1])) * scale
    if bias is not None:
        scores = scores + xp.astype(bias[:, :, 0], dtype, copy=False)
    weights = xp.exp(scores - xp.max(scores, axis=2, keepdims=True))
    weights = weights / xp.sum(weights, axis=2, keepdims=True)
    return xp.mean(weights, axis=1), xp.permute_dims(v, (0, 2, 1, 3))
