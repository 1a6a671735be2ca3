"""The context of a matching in a patched block: its attention is computed only if it is read."""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.checks import check_read
from tomecore.adapters.engine.class_attention import weights_and_values
from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.positions import original_counts
from tomecore.adapters.engine.state import TokenState
from tomecore.backends import Array
from tomecore.errors import UnsupportedModelError
from tomecore.matching import Context

__all__ = ["AttentionInput", "BlockContext"]


class AttentionInput:
    """The input of the attention of a block: its tokens, the bias of their sizes, and other arguments.

    Args:
        x: (B, N, C), the tokens that entered the block.
        bias: (B, 1, 1, N), or None.
        block_kwargs: the block's other arguments, as ``Spec.attend`` gets them.
    """

    def __init__(self, x: Array, bias: Array | None, block_kwargs: dict[str, Any]) -> None:
        self.x = x
        self.bias = bias
        self.block_kwargs = block_kwargs


class BlockContext(Context):
    """The context of one merge in a patched block.

    Args:
        config: the config of the patched model.
        block: the block that merges.
        x: (B, N, C), the tokens after its attention.
        state: the state of the pass, before the merge.
        entered: the input of its attention.
    """

    def __init__(
        self, config: Config, block: Any, x: Array, state: TokenState, entered: AttentionInput
    ) -> None:
        backend = config.host.backend()
        Context.__init__(
            self,
            x,
            protected=config.protected,
            valid=None if state.valid is None else state.sizes > 0,  # type: ignore[operator]
            sizes=state.sizes,
            num_layers=config.num_layers,
            backend=backend,
        )
        self._config = config
        self._block = block
        self._state = state
        self._entered = entered
        self._attention: tuple[Array, Array] | None = None

    @property
    def layer(self) -> int:
        """Number of the block, from 0. A matching that reads it is compiled for each block."""
        return self._state.blocks

    @property
    def counts(self) -> Array:
        """(B, N) int: the number of original tokens in each token, including padding and dropped ones."""
        xp, source = self.backend.xp, self._state.source
        if source is None:
            return xp.astype(xp.ones_like(self.x[:, :, 0]), xp.int64)
        return xp.astype(original_counts(self.backend, self._state), xp.int64)

    def class_attention(self) -> Array:
        """Return (B, N): the attention weights of the class token to each token, averaged over heads."""
        if self._config.prefix == 0:
            raise UnsupportedModelError(
                f"the attention of the class token is not available for {self._config.spec.family}: this "
                "model has no class token. Declare @matching.needs('class_attention'), so that apply_patch "
                "refuses such models."
            )
        return self.backend.detach(self._weights_and_values()[0])

    def values(self) -> Array:
        """Return (B, H, N, D): the values of the attention."""
        return self.backend.detach(self._weights_and_values()[1])

    def _weights_and_values(self) -> tuple[Array, Array]:
        if self._attention is None:
            config, entered = self._config, self._entered
            check_read(config, self._block)
            self._attention = weights_and_values(
                config.host,
                config.spec,
                self._block,
                entered.x,
                entered.bias,
                entered.block_kwargs,
            )
        return self._attention
