"""The context of a merge, which a matching may read besides the keys; and the type of a matching."""

from __future__ import annotations

from collections.abc import Callable

from tomecore.backends import Array, Backend, backend_of
from tomecore.core.plan import MergePlan
from tomecore.errors import UnsupportedModelError

__all__ = ["Context", "Matching"]

_NO_BLOCK = (
    "this matching reads the attention of a block, so it runs only in a patched model: "
    "apply_patch(model, matching=...)"
)


class Context:
    """The data of one merge that a matching may read besides the keys: tokens, sizes and attention.

    A patched model creates one for each merge. Create one yourself to call a matching without a model.

    Args:
        x: (B, N, C), the tokens that will merge; in a model, as they are after the attention.
        protected: number of prefix tokens, which neither merge nor are merged into.
        valid: (B, N) bool, False for padding; None without padding.
        sizes: (B, N), the weights of the tokens in attention; None: 1 each.
        layer: number of the block, from 0.
        num_layers: number of blocks of the model.
        backend: the backend of ``x``; inferred if left out.
    """

    def __init__(
        self,
        x: Array,
        *,
        protected: int = 0,
        valid: Array | None = None,
        sizes: Array | None = None,
        layer: int = 0,
        num_layers: int = 1,
        backend: Backend | None = None,
    ) -> None:
        #: the backend of all arrays
        self.backend: Backend = backend or backend_of(x)
        #: (B, N, C): the tokens that will merge, without gradients
        self.x: Array = self.backend.detach(x)
        #: number of prefix tokens, which neither merge nor are merged into
        self.protected = protected
        #: (B, N) bool, False for padding; None without padding
        self.valid = valid
        #: number of blocks of the model
        self.num_layers = num_layers
        self._sizes = sizes
        self._layer = layer

    @property
    def layer(self) -> int:
        """Number of the block, from 0. A matching that reads it is compiled for each block."""
        return self._layer

    @property
    def sizes(self) -> Array:
        """(B, N) float32: the weight of each token in attention; 0 for padding."""
        xp = self.backend.xp
        if self._sizes is None:
            return xp.astype(xp.ones_like(self.x[:, :, 0]), xp.float32)
        return xp.astype(self._sizes, xp.float32, copy=False)

    @property
    def counts(self) -> Array:
        """(B, N) int: the number of original tokens in each token, including padding and dropped ones.

        It differs from ``sizes`` if a matching drops tokens or sets ``size_weight``.
        """
        xp = self.backend.xp
        return xp.astype(self.sizes, xp.int64)

    def class_attention(self) -> Array:
        """Return (B, N): the attention weights of the class token to each token, averaged over heads.

        They are computed from one query row, in float32 (float64 for float64 tokens), without gradients.

        Raises:
            UnsupportedModelError: there is no block.
        """
        raise UnsupportedModelError(_NO_BLOCK)

    def values(self) -> Array:
        """Return (B, H, N, D): the values of the attention, without gradients.

        Raises:
            UnsupportedModelError: there is no block.
        """
        raise UnsupportedModelError(_NO_BLOCK)


#: (keys (B, N, D), r, context) -> a plan that keeps N - r tokens, the prefix tokens first and in order
Matching = Callable[[Array, int, Context], MergePlan]
