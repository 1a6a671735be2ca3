"""Code that families of Paddle's libraries share: attention, an MLP half, position biases, hidden states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.host import LayerHost
from tomecore.adapters.engine.positions import merge_position_bias
from tomecore.adapters.engine.spec import Kwargs
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.engine.swap import Swapped
from tomecore.adapters.families.attention import (
    Layer,
    ProjectedAttention,
    attend_heads,
    separate_qkv,
)
from tomecore.adapters.families.readers import read_with
from tomecore.backends import Array, Bias, Tokens

__all__ = [
    "IDENTITY",
    "NORMS",
    "HiddenStates",
    "attend_projected",
    "attend_with_dropout",
    "carry_bias",
    "feed_gamma",
    "one_prefix_token",
    "position_bias",
]

NORMS = (".paddle.nn.layer.norm.LayerNorm",)
IDENTITY = ".paddle.nn.layer.common.Identity"

_MERGED = "merged bias"


class AttentionWithDropout(ProjectedAttention, Protocol):
    """An attention with three projections whose dropout is a number."""

    dropout: float
    out_proj: Layer


class ScaledMlpHalf(Protocol):
    """The modules of an MLP half, and its LayerScale."""

    norm2: Layer
    mlp: Layer
    gamma_2: Array | None
    drop_path: Layer


def one_prefix_token(tower: Any) -> int:
    """Return 1, for the class token."""
    return 1


def attend_with_dropout(
    host: LayerHost,
    attn: Any,
    qkv: tuple[Array, Array, Array],
    bias: Array | None,
    dropout: Any,
    scale: float,
) -> Array:
    """Return the attention before its output projection, (B, rows, H * D); ``dropout`` is a module."""
    q, k, v = qkv
    y = attention_with(host, dropout)(q, k, v, bias, scale=scale)
    y = y.reshape([-1, y.shape[1], y.shape[2] * y.shape[3]])
    host.call_shape_hooks(attn, y)
    return y


def attention_with(host: LayerHost, dropout: Any) -> Callable[..., Array]:
    """Return the host's attention with the module's dropout, fused if that is a plain dropout.

    Any other module is called on the attention weights, as in the library: a quantiser, an observer, a
    dropout with a hook or of another kind.
    """
    rate = host.dropout_rate(dropout)
    if rate is None:
        return partial(host.attention_through, dropout)
    return partial(host.attention, dropout=rate)


def attend_projected(
    host: LayerHost, attn: AttentionWithDropout, x: Tokens, bias: Bias | None, scale: float
) -> tuple[Tokens, Array]:
    """Return the output of an attention with three projections, (B, N, C), and the keys (B, N, H, D)."""
    q, k, v = separate_qkv((attn.q_proj, attn.k_proj, attn.v_proj), x, attn.head_dim)
    dropout = attn.dropout if attn.training else 0.0
    y = attn.out_proj(attend_heads(host, (q, k, v), bias, dropout, scale))
    host.call_shape_hooks(attn, y)
    return y, k


def feed_gamma(block: ScaledMlpHalf, x: Tokens) -> Tokens:
    """Compute the MLP half of blocks whose LayerScale is a parameter ``gamma_2``, or None."""
    y = block.mlp(block.norm2(x))
    if block.gamma_2 is not None:
        y = block.gamma_2 * y
    return x + block.drop_path(y)


def position_bias(attn: Any, block_kwargs: Kwargs) -> Array | None:
    """Return the bias (B or 1, H, N, N) for the current tokens, from the block's table, a shared one or both.

    It is None if there is neither. The block's table has BEiT's form: an index of pairs of positions, which
    include the class token.
    """
    if _MERGED in block_kwargs:
        merged: Array = block_kwargs[_MERGED]
        return merged
    shared = block_kwargs.get("rel_pos_bias")
    if shared is not None and len(shared.shape) == 3:
        shared = shared.unsqueeze(0)
    table = getattr(attn, "relative_position_bias_table", None)
    if table is None:
        return shared
    index = attn.relative_position_index
    side = index.shape[0]
    own = table[index.reshape([-1])].reshape([side, side, -1]).transpose([2, 0, 1]).unsqueeze(0)
    return own if shared is None else own + shared


def carry_bias(host: LayerHost, block: Any, block_kwargs: Kwargs, state: TokenState) -> Kwargs:
    """Merge the position bias of all tokens, shared or the block's own."""
    bias = position_bias(block.attn, block_kwargs)
    return {} if bias is None else {_MERGED: merge_position_bias(host, bias, state)}


class HiddenStates(Swapped):
    """Mixin of a CLIP's tower: requested hidden states hold all tokens of every layer."""

    _tome: Config
    config: Any

    def forward(
        self,
        pixel_values: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
    ) -> Any:
        """Run the tower; while hidden states are recorded, every block returns all tokens."""
        # While SOT simulates, super() has no attributes; SOT runs layers of paddle.nn on symbols anyway.
        if self._tome.spec.returns_tuple:
            self._tome.host.run_as_is(True)
        wanted = output_hidden_states
        if wanted is None:
            wanted = self.config.output_hidden_states
        forward = super(HiddenStates, self).forward  # type: ignore[misc] # noqa: UP008
        args = (pixel_values, output_attentions, output_hidden_states, return_dict)
        if not wanted:
            return forward(*args)
        return read_with(self._tome.recording, self._tome.host.tracing(), forward, args, {})
