"""The differences that count as rounding, by the precision of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.parity._report import Difference

__all__ = ["Tolerance"]

#: dtype -> rtol, atol, gap; the most precise first
_DEFAULTS = {
    "float64": (1e-9, 1e-12, 1e-9),
    "float32": (1e-4, 1e-6, 1e-4),
    "float16": (2e-2, 1e-3, 2e-2),
    "bfloat16": (1e-1, 1e-2, 1e-1),
}


@dataclass(frozen=True)
class Tolerance:
    """Allow differences up to ``atol + rtol * largest element``, and flips of scores nearer than ``gap``.

    Args:
        dtype: dtype of the weights, the less precise one if they differ.
        rtol: relative to the largest element of the first model's array.
        atol: added to that.
        gap: largest gap between two similarities that rounding may flip.
    """

    dtype: str
    rtol: float
    atol: float
    gap: float

    @classmethod
    def between(
        cls, model_a: Any, model_b: Any, rtol: float | None, atol: float | None, gap: float | None
    ) -> Tolerance:
        """Return the default for the weights of two models, except for the values that are given.

        Raises:
            ArgumentValueError: a tolerance is negative, or the weights are not floating point.
        """
        for value, name in ((rtol, "rtol"), (atol, "atol"), (gap, "gap")):
            if value is not None and not value >= 0:
                raise ArgumentValueError(f"`{name}` must be at least 0; got {value!r}")
        dtypes = [_dtype(model) for model in (model_a, model_b)]
        dtype = max(dtypes, key=list(_DEFAULTS).index)
        given = (rtol, atol, gap)
        chosen = [d if g is None else g for d, g in zip(_DEFAULTS[dtype], given, strict=True)]
        return cls(dtype, *chosen)

    def holds(self, difference: Difference) -> bool:
        """Whether a difference is within the tolerance; NaN is not."""
        return difference.largest <= self.atol + self.rtol * difference.scale

    def __str__(self) -> str:
        return f"{self.dtype}, tolerance {self.rtol:g} * largest + {self.atol:g}"


def _dtype(model: Any) -> str:
    dtype = str(next(iter(model.parameters())).dtype).rpartition(".")[2]
    if dtype not in _DEFAULTS:
        raise ArgumentValueError(
            f"the weights of {type(model).__name__} are {dtype}; allowed are {', '.join(_DEFAULTS)}"
        )
    return dtype
