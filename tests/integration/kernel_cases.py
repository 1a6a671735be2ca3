"""Helpers for the tests of the compiled kernels: arrays as blocks pass them, and the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import torch

import tomecore as tc
from tomecore.backends import backend_of
from tomecore.backends.kernels.cpu.fused import Fused, Keys

__all__ = [
    "KINDS",
    "LAYOUTS",
    "TORCH",
    "Kind",
    "agree",
    "asked",
    "defined",
    "fused",
    "laid",
    "some",
]

LAYOUTS = ("qkv", "tokens first", "in the last axis")


@dataclass(frozen=True)
class Kind:
    """Arrays of one library and dtype; ``rounding`` is one unit in the last place, relative."""

    name: str
    to_array: Callable[[np.ndarray], Any]
    to_numpy: Callable[[Any], np.ndarray]
    transpose: Callable[[Any, list[int]], Any]
    log: Callable[[Any], Any]
    dtype: Any
    rounding: float

    def __repr__(self) -> str:
        return self.name


def of_torch(name: str, dtype: torch.dtype, rounding: float) -> Kind:
    return Kind(
        name,
        lambda values: torch.tensor(values, dtype=dtype),
        lambda array: (array.float() if array.dtype.is_floating_point else array).numpy(),
        lambda array, axes: array.permute(axes),
        torch.log,
        dtype,
        rounding,
    )


TORCH = of_torch("torch-float32", torch.float32, 1e-6)
KINDS = [
    TORCH,
    of_torch("torch-bfloat16", torch.bfloat16, 2**-7),
    Kind(
        "paddle-float32",
        lambda values: paddle.to_tensor(values.astype("float32")),
        lambda array: array.numpy(),
        paddle.transpose,
        paddle.log,
        paddle.float32,
        1e-6,
    ),
]


def plain(kind: Kind, values: np.ndarray) -> Any:
    """Float32 or int64 of the kind's library."""
    return (torch.tensor if kind.name.startswith("torch") else paddle.to_tensor)(values)


def laid(kind: Kind, key: np.ndarray, layout: str) -> Keys:
    """``key`` (B, N, H, D) in the layouts that blocks use, with queries and values if it is a view of qkv."""
    batch, count, heads, width = key.shape
    if layout == "qkv":
        qkv = kind.to_array(np.stack([key + 1, key, key - 1], axis=2))
        return Keys(kind.transpose(qkv, [2, 0, 3, 1, 4])[1], 1, heads)
    if layout == "tokens first":
        return Keys(kind.to_array(key), 2, heads)
    return Keys(kind.to_array(key.reshape(batch, count, heads * width)), None, heads)


def asked(
    kind: Kind, key: np.ndarray, layout: str = LAYOUTS[0], *, strided: bool = False, **given: Any
) -> tuple[Keys, Any, Any, Any]:
    """Keys, x, sizes and source, of which the last two may be None."""
    rng, (batch, count) = np.random.default_rng(len(key)), key.shape[:2]
    x = 3 * rng.standard_normal((count, batch, 12))
    if strided:
        x = kind.transpose(kind.to_array(x), [1, 0, 2])
    else:
        x = kind.to_array(np.ascontiguousarray(x.transpose(1, 0, 2)))
    sizes = source = None
    if given.get("weighted"):
        sizes = plain(kind, rng.choice([1, 2, 7, 300], size=(batch, count)).astype("float32"))
    if given.get("composed"):
        source = plain(kind, rng.integers(0, count, size=(batch, count + 5)))
    return laid(kind, key, layout), x, sizes, source


def defined(kind: Kind, key: Any, x: Any, sizes: Any, source: Any, r: int, protected: int) -> Fused:
    """Compute the expected result with the public core; ``key`` (B, N, H, D) in the kind's own precision."""
    summed = np.ascontiguousarray(kind.to_numpy(kind.to_array(key)).sum(axis=2))
    plan = tc.bipartite_soft_matching(plain(kind, summed), r, protected=protected)
    merged, now = tc.merge_weighted(plan, x, sizes)
    tokens = np.concatenate([kind.to_numpy(plan.kept), kind.to_numpy(plan.merged)], axis=1)
    return Fused(tokens, plan.into, tc.compose(source, plan), merged, now, kind.log(now))


def agree(kind: Kind, found: Fused | None, wanted: Fused) -> None:
    assert found is not None
    assert found.x.dtype == found.bias.dtype == kind.dtype
    np.testing.assert_array_equal(kind.to_numpy(found.tokens), wanted.tokens)
    for name in ("into", "source", "sizes"):
        got, expected = (kind.to_numpy(getattr(one, name)) for one in (found, wanted))
        assert got.dtype == expected.dtype, name
        np.testing.assert_array_equal(got, expected, err_msg=name)
    got, expected = kind.to_numpy(found.x), kind.to_numpy(wanted.x)
    np.testing.assert_allclose(got, expected, kind.rounding, 2e-6)
    if kind.rounding > 1e-3:  # to the nearest: sums of other orders seldom tell
        assert (got != expected).sum() <= max(3, 0.02 * got.size)
    bias = kind.to_numpy(found.bias)
    assert bias.shape == (got.shape[0], 1, 1, got.shape[1])
    np.testing.assert_allclose(bias[:, 0, 0], kind.to_numpy(wanted.bias), kind.rounding, 1e-7)


def some() -> tuple[Keys, torch.Tensor]:
    key = np.random.default_rng(4).standard_normal((2, 15, 2, 8))
    return asked(TORCH, key)[:2]


def fused(
    keys: Keys, x: Any, sizes: Any = None, source: Any = None, r: int = 3, protected: int = 1
) -> Fused | None:
    before = None if source is None else lambda: source
    return backend_of(x).fused(keys, x, sizes, before, r, protected)
