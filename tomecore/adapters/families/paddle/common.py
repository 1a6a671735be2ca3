"""What families of Paddle's libraries share: attention by its parts, position biases, dense readers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.positions import merged_bias
from tomecore.adapters.engine.swap import Swapped
from tomecore.backends import Array

__all__ = [
    "IDENTITY",
    "NORMS",
    "Dense",
    "HiddenStates",
    "attend_by_parts",
    "attend_projected",
    "attention_with",
    "carry_bias",
    "one_in_front",
    "position_bias",
    "with_bias",
]

NORMS = (".paddle.nn.layer.norm.LayerNorm",)
IDENTITY = ".paddle.nn.layer.common.Identity"

_MERGED = "merged bias"


def one_in_front(tower: Any) -> int:
    """The class token."""
    return 1


def attend_by_parts(
    host: Any, attn: Any, qkv: Array, bias: Array | None, scale: float, dropout: Any
) -> tuple[Array, Array]:
    """What comes before the projection, (B, N, C), and the keys (B, N, H, D), of a fused qkv."""
    tokens, heads = qkv.shape[1], attn.num_heads
    head_dim = qkv.shape[2] // (3 * heads)
    qkv = qkv.reshape([-1, tokens, 3, heads, head_dim])
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    y = attention_with(host, attn, dropout)(q, k, v, bias, scale=scale)
    y = y.reshape([-1, tokens, heads * head_dim])
    host.observed(attn, y)
    return y, k


def attention_with(host: Any, attn: Any, dropout: Any) -> Callable[..., Array]:
    """The host's attention with the module's dropout, fused where that is a plain one.

    Anything else is called on the attention weights, as in the library: a quantiser, an observer, a dropout
    with a hook or of another kind.
    """
    rate = host.dropout_rate(dropout)
    if rate is None:
        return partial(host.attention_through, dropout)
    return partial(host.attention, dropout=rate)


def attend_projected(
    host: Any, attn: Any, x: Array, bias: Array | None, scale: float
) -> tuple[Array, Array]:
    """What attention makes of ``x``, (B, N, C), and the keys (B, N, H, D), of three projections."""
    tokens, heads, width = x.shape[1], attn.num_heads, attn.head_dim
    q = attn.q_proj(x).reshape([-1, tokens, heads, width])
    k = attn.k_proj(x).reshape([-1, tokens, heads, width])
    v = attn.v_proj(x).reshape([-1, tokens, heads, width])
    dropout = attn.dropout if attn.training else 0.0
    y = host.attention(q, k, v, bias, dropout=dropout, scale=scale)
    y = attn.out_proj(y.reshape([-1, tokens, heads * width]))
    host.observed(attn, y)
    return y, k


def with_bias(positions: Array | None, sizes: Array | None) -> Array | None:
    if positions is None or sizes is None:
        return sizes if positions is None else positions
    return positions + sizes


def position_bias(attn: Any, given: dict[str, Any]) -> Array | None:
    """(B or 1, H, N, N) of the tokens there are, or None: a table of the block, a shared one, or both.

    The block's table is BEiT's: an index of pairs of positions, the class token among them.
    """
    if _MERGED in given:
        merged: Array = given[_MERGED]
        return merged
    shared = given.get("rel_pos_bias")
    if shared is not None and len(shared.shape) == 3:
        shared = shared.unsqueeze(0)
    table = getattr(attn, "relative_position_bias_table", None)
    if table is None:
        return shared
    index = attn.relative_position_index
    side = index.shape[0]
    own = table[index.reshape([-1])].reshape([side, side, -1]).transpose([2, 0, 1]).unsqueeze(0)
    return own if shared is None else own + shared


def carry_bias(host: Any, block: Any, given: dict[str, Any], run: Any) -> dict[str, Any]:
    bias = position_bias(block.attn, given)
    return {} if bias is None else {_MERGED: merged_bias(host, bias, run)}


class Dense(Swapped):
    """Mixin of the tower: readers of intermediate layers get all tokens of every layer."""

    _tome: Config

    def get_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        dense, tracing = self._tome.dense, self._tome.host.tracing()
        entered = dense.enter(tracing)
        try:
            return super(Dense, self).get_intermediate_layers(*args, **kwargs)  # type: ignore[misc] # noqa: UP008
        finally:
            dense.leave(entered, tracing)


class HiddenStates(Swapped):
    """Mixin of a CLIP's tower: who asks for hidden states gets all tokens of every layer."""

    _tome: Config
    config: Any

    def forward(
        self,
        pixel_values: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
    ) -> Any:
        # Where SOT simulates, super() has no attributes; layers of paddle.nn it runs on symbols anyway.
        if self._tome.spec.returns_tuple:
            self._tome.host.run_as_is(True)
        wanted = output_hidden_states
        if wanted is None:
            wanted = self.config.output_hidden_states
        recording, tracing = self._tome.recording, self._tome.host.tracing()
        entered = recording.enter(tracing) if wanted else None
        try:
            return super(HiddenStates, self).forward(  # type: ignore[misc] # noqa: UP008
                pixel_values, output_attentions, output_hidden_states, return_dict
            )
        finally:
            if wanted:
                recording.leave(entered, tracing)
