"""The multiply-adds of a patched model, and how much of them merging saves.

Counted from the real layers (``adapters/engine/count.py``): what of a block comes before its merge sees the
tokens that enter it, what comes behind sees fewer. Pure numbers: an :class:`Arithmetic` does not hold the
model, can be pickled, and answers for any number of tokens and any r.

    arithmetic = arithmetic_of(model)
    arithmetic.limit(197, 16)            # 2.00: how much faster ViT-B/16 can get by arithmetic alone
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.schedule.parse import R, parse_r
from tomecore.schedule.rules import clamped, handle_of

__all__ = ["Arithmetic", "LayerArithmetic", "PlannedLayer", "arithmetic_of", "plan_table"]


@dataclass(frozen=True)
class LayerArithmetic:
    """Multiply-adds of one block.

    Args:
        attention: of each token that enters the block, in its projections.
        feed: of each token that its merge leaves, in the half behind it.
        width: of each pair of tokens that enter, twice: in the scores and in the weighted values.
    """

    attention: int
    feed: int
    width: int

    def multiply_adds(self, entering: int, left: int) -> int:
        """Of one image, whose ``entering`` tokens the block makes ``left``."""
        return entering * self.attention + 2 * entering * entering * self.width + left * self.feed


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-adds of one vision tower: matrix products and convolutions, of one image.

    Not counted: norms, activations, softmax and other work per number, look-ups in tables, products that
    look up or resize positions (0.2 % of a SigLIP 2 Base), and the work of merging itself (its product of
    keys is N/2 x N/2 x D for each layer that merges). What stands around the tower, the language model or
    text tower behind it, is not counted either.

    Args:
        layers: the blocks, in order.
        protected: tokens at the front that never merge, and that are no patches.
        per_patch: outside the blocks, for each patch of the image.
        per_token: outside the blocks, for each token: pooling by attention looks at all of them.
        once: outside the blocks, once: the head.
        rows: with ``trim_last``, the tokens that the last block makes; it merges none. None: all.
        keys: then, of the last block's ``attention``, what makes keys and values of each token that enters.
    """

    layers: tuple[LayerArithmetic, ...]
    protected: int
    per_patch: int
    per_token: int
    once: int
    rows: int | None = None
    keys: int = 0

    def merged(self, num_tokens: int, wanted: list[int]) -> list[int]:
        """What each block merges of ``num_tokens`` tokens where it is asked to merge ``wanted``."""
        if self.rows is not None:
            wanted = [*wanted[:-1], 0]
        return clamped(wanted, num_tokens, self.protected)

    def per_layer(self, num_tokens: int, r: R) -> list[int]:
        """Multiply-adds of each block; arguments as in :meth:`multiply_adds`."""
        entering = whole_number(num_tokens, "num_tokens", at_least=1)
        wanted = parse_r(len(self.layers), r, num_tokens=entering, protected=self.protected)
        found = []
        for index, merged in enumerate(self.merged(entering, wanted)):
            left = entering - merged
            found.append(self.layers[index].multiply_adds(entering, left))
            entering = left
        if self.rows is not None:
            last, rows = self.layers[-1], min(self.rows, entering)
            found[-1] = entering * self.keys + rows * (last.attention - self.keys + last.feed)
            found[-1] += 2 * rows * entering * last.width
        return found

    def multiply_adds(self, num_tokens: int, r: R) -> float:
        """Multiply-adds of one image.

        Args:
            num_tokens: tokens that enter the first block, protected ones included.
            r: any form of r.

        Raises:
            ArgumentTypeError, ArgumentValueError: as :func:`tomecore.parse_r`.
        """
        patches = max(0, num_tokens - self.protected)
        outside = patches * self.per_patch + num_tokens * self.per_token + self.once
        return float(sum(self.per_layer(num_tokens, r)) + outside)

    def limit(self, num_tokens: int, r: R) -> float:
        """How much faster the model can get by arithmetic alone; arguments as :meth:`multiply_adds`."""
        return self.unpatched.multiply_adds(num_tokens, 0) / self.multiply_adds(num_tokens, r)

    @property
    def unpatched(self) -> Arithmetic:
        """The same where the last block makes all tokens."""
        return self if self.rows is None else replace(self, rows=None, keys=0)


@dataclass(frozen=True)
class PlannedLayer:
    """What one layer makes of its tokens.

    Args:
        layer: its number, from 0.
        asked: tokens that r asks it to merge; with ``trim_last``, 0 for the last.
        merged: tokens it merges, fewer where it cannot merge as many.
        tokens: tokens that leave it.
        share: its multiply-adds, over those it has where nothing merges anywhere.
    """

    layer: int
    asked: int
    merged: int
    tokens: int
    share: float

    @property
    def clamped(self) -> bool:
        """Whether the layer could not merge as many tokens as it was asked to."""
        return self.merged < self.asked


def arithmetic_of(model: Any) -> Arithmetic:
    """Count the multiply-adds of a patched model, of any family and framework; ``model.tome.arithmetic``.

    Of a model that holds its vision tower among other things (CLIP, LLaVA) the tower is counted alone.

    Raises:
        NotPatchedError: the model is not patched.
        UnsupportedModelError: the blocks hold no weights to count, or their halves cannot be told apart.
    """
    arithmetic: Arithmetic = handle_of(model).arithmetic
    return arithmetic


def plan_table(model: Any, num_tokens: int, r: R) -> list[PlannedLayer]:
    """What each layer of a model would do, without running it.

    Args:
        model: a patched model, or its :class:`Arithmetic`.
        num_tokens: tokens that enter the first block, protected ones included.
        r: any form of r.

    Returns:
        One row for each layer.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError, ArgumentValueError: as :func:`tomecore.parse_r`.
    """
    arithmetic = model if isinstance(model, Arithmetic) else arithmetic_of(model)
    tokens = whole_number(num_tokens, "num_tokens", at_least=1)
    asked = parse_r(len(arithmetic.layers), r, num_tokens=tokens, protected=arithmetic.protected)
    full = arithmetic.unpatched.per_layer(tokens, 0)
    costs = arithmetic.per_layer(tokens, asked)
    rows = []
    if arithmetic.rows is not None:
        asked = [*asked[:-1], 0]
    for layer, merged in enumerate(arithmetic.merged(tokens, asked)):
        tokens -= merged
        rows.append(PlannedLayer(layer, asked[layer], merged, tokens, costs[layer] / full[layer]))
    return rows
