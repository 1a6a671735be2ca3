"""Compute the multiply-adds of a patched model, and how many of them merging saves.

They are counted from the real layers (``adapters/engine/count.py``): the part of a block before its merge
processes all tokens that enter the block, the part after it fewer. An :class:`Arithmetic` holds numbers only,
not the model; it can be pickled, and works for any number of tokens and any r.

    arithmetic = arithmetic_of(model)
    arithmetic.limit(197, 16)            # 2.00: ViT-B/16 needs half of its multiply-adds
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.schedule.parse import R, parse_r
from tomecore.schedule.rules import clamp_schedule, handle_of

__all__ = [
    "Arithmetic",
    "LayerArithmetic",
    "PlannedLayer",
    "arithmetic_of",
    "in_words",
    "plan_table",
]


@dataclass(frozen=True)
class LayerArithmetic:
    """Multiply-adds of one block.

    Args:
        attention: multiply-adds of the projections, per token that enters the block.
        feed: multiply-adds of the MLP half, per token left after the merge.
        width: multiply-adds per pair of entering tokens, needed twice: for the scores and for the
            weighted sum of the values.
    """

    attention: int
    feed: int
    width: int

    def multiply_adds(self, entering: int, left: int) -> int:
        """Return the multiply-adds for one image: ``entering`` tokens before the merge, ``left`` after it."""
        return entering * self.attention + 2 * entering * entering * self.width + left * self.feed


@dataclass(frozen=True)
class Arithmetic:
    """Multiply-adds of one vision tower for one image: its matrix products and convolutions.

    Not counted: norms, activations, softmax and other elementwise work, table look-ups, products that
    look up or resize positions (0.2 % of a SigLIP 2 Base), and the work of merging itself (its product of
    keys is N/2 x N/2 x D for each layer that merges). Models around the tower, such as a language model or
    a text tower, are not counted either.

    Args:
        layers: the blocks, in order.
        protected: prefix tokens, which never merge and are not patches.
        per_patch: multiply-adds outside the blocks, per patch of the image.
        per_token: multiply-adds outside the blocks, per token, for attention pooling over all tokens.
        once: multiply-adds outside the blocks, per image, for the head.
        rows: with ``trim_last``, the number of tokens that the last block computes, without merging.
            None: all tokens.
        keys: with ``trim_last``, the share of the last block's ``attention`` that computes keys and values.
    """

    layers: tuple[LayerArithmetic, ...]
    protected: int
    per_patch: int
    per_token: int
    once: int
    rows: int | None = None
    keys: int = 0

    def merged(self, num_tokens: int, wanted: list[int]) -> list[int]:
        """Return the tokens that each block merges, of ``wanted``, if ``num_tokens`` enter the first one."""
        if self.rows is not None:
            wanted = [*wanted[:-1], 0]
        return clamp_schedule(wanted, num_tokens, self.protected)

    def per_layer(self, num_tokens: int, r: R) -> list[int]:
        """Return the multiply-adds of each block; arguments as in :meth:`multiply_adds`."""
        entering = whole_number(num_tokens, "num_tokens", at_least=1)
        wanted = parse_r(len(self.layers), r, num_tokens=entering, protected=self.protected)
        return self._of_layers(entering, self.merged(entering, wanted))

    def _of_layers(self, entering: int, merged: list[int]) -> list[int]:
        found = []
        for index, layer in enumerate(self.layers):
            left = entering - merged[index]
            if self.rows is not None and index == len(self.layers) - 1:
                rows = min(self.rows, entering)
                cost = entering * self.keys + rows * (layer.attention - self.keys + layer.feed)
                found.append(cost + 2 * rows * entering * layer.width)
            else:
                found.append(layer.multiply_adds(entering, left))
            entering = left
        return found

    def of_merged(self, num_tokens: int, merged: list[int]) -> float:
        """Return :meth:`multiply_adds` without checks: ``merged`` is what each block really merges."""
        patches = max(0, num_tokens - self.protected)
        outside = patches * self.per_patch + num_tokens * self.per_token + self.once
        return float(sum(self._of_layers(num_tokens, merged)) + outside)

    def multiply_adds(self, num_tokens: int, r: R) -> float:
        """Return the multiply-adds for one image.

        Args:
            num_tokens: tokens that enter the first block, protected ones included.
            r: any form of ``r``.

        Raises:
            ArgumentTypeError, ArgumentValueError: as in :func:`tomecore.parse_r`.
        """
        entering = whole_number(num_tokens, "num_tokens", at_least=1)
        wanted = parse_r(len(self.layers), r, num_tokens=entering, protected=self.protected)
        return self.of_merged(entering, self.merged(entering, wanted))

    def limit(self, num_tokens: int, r: R) -> float:
        """Return the arithmetic speed-up, multiply-adds before over after; see :meth:`multiply_adds`."""
        return self.unpatched.multiply_adds(num_tokens, 0) / self.multiply_adds(num_tokens, r)

    @property
    def unpatched(self) -> Arithmetic:
        """The same model without ``trim_last``: its last block computes all tokens."""
        return self if self.rows is None else replace(self, rows=None, keys=0)


@dataclass(frozen=True)
class PlannedLayer:
    """The plan for one layer.

    Args:
        layer: number of the layer, from 0.
        asked: tokens to merge according to ``r``; with ``trim_last``, 0 for the last layer.
        merged: tokens that the layer merges; fewer than ``asked`` if it cannot merge as many.
        tokens: tokens that leave the layer.
        share: multiply-adds of the layer, divided by those without any merging.
    """

    layer: int
    asked: int
    merged: int
    tokens: int
    share: float

    @property
    def clamped(self) -> bool:
        """Whether the layer merges fewer tokens than ``asked``."""
        return self.merged < self.asked


def arithmetic_of(model: Any) -> Arithmetic:
    """Return ``model.tome.arithmetic``: the multiply-adds of a patched model of any family and framework.

    If the vision tower is part of a larger model (CLIP, LLaVA), only the tower is counted.

    Raises:
        NotPatchedError: the model is not patched.
        UnsupportedModelError: the blocks hold no weights to count, or their halves cannot be separated.
    """
    arithmetic: Arithmetic = handle_of(model).arithmetic
    return arithmetic


def plan_table(model: Any, num_tokens: int, r: R) -> list[PlannedLayer]:
    """Plan what each layer of a model merges, without running the model.

    Args:
        model: a patched model, or its :class:`Arithmetic`.
        num_tokens: tokens that enter the first block, protected ones included.
        r: any form of ``r``.

    Returns:
        One row for each layer.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError, ArgumentValueError: as in :func:`tomecore.parse_r`.
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


def in_words(multiply_adds: float) -> str:
    """Return a number of multiply-adds with three significant digits: "17.6 billion", "4.21 million"."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if multiply_adds >= 0.9995 * size:
            return f"{format(multiply_adds / size, '#.3g').rstrip('.')} {name}"
    return f"{multiply_adds:,.0f}"
