"""A context whose attention and values are given, for tests of matchings without a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from libraries import Library
from reference_matchings import Image

from tomecore.matching import Context

__all__ = ["GivenContext", "images_of", "random_arrays"]


class GivenContext(Context):
    """A context that hands out given arrays, and notes in ``read`` what was read."""

    def __init__(self, x: Any, attention: Any, values: Any, **options: Any) -> None:
        super().__init__(x, **options)
        self.given = {"class_attention": attention, "values": values}
        self.read: set[str] = set()

    def class_attention(self) -> Any:
        self.read.add("class_attention")
        return self.given["class_attention"]

    def values(self) -> Any:
        self.read.add("values")
        return self.given["values"]

    @classmethod
    def of(cls, library: Library, arrays: dict[str, Any], **options: Any) -> GivenContext:
        """A context with arrays of a library, converted from NumPy's."""
        converted = {
            name: None if array is None else library.to_array(array)
            for name, array in arrays.items()
        }
        named = {name: converted[name] for name in ("valid", "sizes")}
        x = options.pop("x", converted["x"])
        return cls(x, converted["attention"], converted["values"], **named, **options)


def random_arrays(
    rng: np.random.Generator,
    tokens: int,
    *,
    batch: int = 3,
    heads: int = 2,
    dtype: str = "float64",
    valid: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> dict[str, Any]:
    """Keys, tokens, attention and values of a batch; the attention of each image sums to 1."""
    attention = np.exp(rng.normal(size=(batch, tokens)))
    return {
        "keys": rng.normal(size=(batch, tokens, 6)).astype(dtype),
        "x": rng.normal(size=(batch, tokens, 8)).astype(dtype),
        "attention": (attention / attention.sum(axis=1, keepdims=True)).astype(dtype),
        "values": rng.normal(size=(batch, heads, tokens, 5)).astype(dtype),
        "valid": valid,
        "sizes": None if sizes is None else sizes.astype("float32"),
    }


def images_of(arrays: dict[str, Any], **context: Any) -> Iterator[Image]:
    """The images of a batch, for the reference."""
    for number in range(len(arrays["keys"])):
        one = {name: None if array is None else array[number] for name, array in arrays.items()}
        yield Image(**one, **context)
