"""Paddle's namespace against NumPy's: every name, eagerly and in a static graph with an unknown batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import array_api_compat.numpy as expected_xp
import numpy as np
import paddle
import pytest

from tomecore.backends import paddle as xp

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 4))
Y = RNG.normal(size=(3, 5, 4))
TIED = np.tile(np.array([2.0, 1.0, 2.0, 1.0, 2.0, 1.0]), (3, 4))
WHOLE = RNG.integers(0, 5, size=(3, 5))
DTYPES = ("bool_", "float32", "float64", "int64")


@dataclass(frozen=True)
class Call:
    """One call: arrays with the batch first, then options; a dtype is given by its name."""

    name: str
    arrays: tuple[np.ndarray, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()
    static: bool = True

    def __call__(self, namespace: Any, arrays: Any) -> Any:
        function = getattr(namespace, self.name)
        options = {
            key: getattr(namespace, value) if value in DTYPES else value
            for key, value in self.options.items()
        }
        positional = [
            getattr(namespace, value) if isinstance(value, str) and value in DTYPES else value
            for value in self.positional
        ]
        if self.name == "concat":
            return function(list(arrays), **options)
        return function(*arrays, *positional, **options)

    def __repr__(self) -> str:
        options = [f"{key}={value}" for key, value in self.options.items()]
        dtypes = [str(array.dtype) for array in self.arrays]
        return f"{self.name}({', '.join([*dtypes, *map(str, self.positional), *options])})"


def call(name, *arrays, positional=(), static=True, **options):
    return Call(name, arrays, options, positional, static)


CALLS = [
    call("arange", positional=(5,)),
    call("arange", positional=(2, 9)),
    call("arange", positional=(2, 9, 3), dtype="int64"),
    call("arange", positional=(4, 4), dtype="int64"),
    call("argmax", X, axis=1),
    call("argmax", TIED, axis=1),
    call("argmax", X, axis=2),
    call("argsort", X),
    call("argsort", X, axis=1),
    call("argsort", X, axis=1, descending=True),
    call("argsort", TIED, axis=1, descending=True),
    call("argsort", TIED, axis=1, descending=True, stable=True),
    call("argsort", TIED),
    call("argsort", np.ones((2, 3000)), axis=1),
    call("argsort", np.ones((2, 3000)), axis=1, descending=True),
    call("asarray", positional=(np.arange(4),), dtype="int64"),
    call("asarray", positional=(np.arange(4.0),)),
    call("asarray", positional=([1, 2],), dtype="float64"),
    call("astype", WHOLE, positional=("float32",)),
    call("astype", WHOLE, positional=("float64",)),
    call("astype", X, positional=("float32",), copy=False),
    call("astype", X, positional=("float64",), copy=False),
    call("astype", WHOLE, positional=("bool_",)),
    call("concat", X, Y, axis=1),
    call("concat", WHOLE, WHOLE[:, :0], WHOLE[:, :2], axis=1),
    call("exp", X),
    call("log", np.abs(X)),
    call("matmul", X, Y.swapaxes(1, 2)),
    call("matmul", X.astype("float32"), Y.astype("float32").swapaxes(1, 2)),
    call("max", X, axis=1),
    call("max", X, axis=-1, keepdims=True),
    call("clip", X, min=0.25),
    call("mean", X, axis=1),
    call("mean", X, axis=-1, keepdims=True),
    call("ones_like", X),
    call("ones_like", WHOLE),
    call("permute_dims", X, positional=((0, 2, 1),)),
    call("permute_dims", X, positional=((2, 0, 1),)),
    call("reshape", X, positional=((-1, 4),)),
    call("reshape", X, positional=((-1, 20),)),
    call("sort", X),
    call("sort", X, axis=1),
    call("sort", WHOLE, axis=1, descending=True),
    call("sqrt", np.abs(X)),
    call("sum", X, axis=1),
    call("sum", X, axis=-1, keepdims=True),
    call("sum", X.astype("float32"), axis=-1),
    call("sum", np.random.default_rng(0).normal(size=(2, 5, 3, 4)), axis=2),
    call("sum", np.random.default_rng(0).normal(size=(2, 5, 3, 4)), axis=2, keepdims=True),
    call("take", X, np.array([4, 0, 0]), axis=1),
    call("take", X, np.array([1, 2]), axis=2),
    call("take", X, np.array([2, 0, 2]), axis=0),
    call("take_along_axis", X, WHOLE[:, :2, None].repeat(4, axis=2), axis=1),
    call("take_along_axis", X, WHOLE[:, :, None] % 4, axis=2),
    call("take_along_axis", WHOLE, WHOLE[:, :3], axis=1),
    call("where", X > 0, X, Y),
    call("zeros_like", X),
    call("zeros_like", WHOLE),
]


def same(found, expected):
    expected = np.asarray(expected)
    assert str(found.dtype).removeprefix("paddle.") == str(expected.dtype)
    assert tuple(found.shape) == expected.shape
    tolerance = 1e-6 if expected.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("one", CALLS, ids=repr)
def test_eager(one):
    arrays = [paddle.to_tensor(array) for array in one.arrays]
    same(one(xp, arrays), one(expected_xp, one.arrays))
    for array, before in zip(arrays, one.arrays, strict=True):
        np.testing.assert_array_equal(array.numpy(), before)


@pytest.mark.parametrize("one", CALLS, ids=repr)
def test_views_are_read_and_not_written(one):
    """Paddle's slices share memory and some of its functions write to them."""
    wholes = [paddle.to_tensor(np.stack([array, array])) for array in one.arrays]
    same(one(xp, [whole[1] for whole in wholes]), one(expected_xp, one.arrays))
    for whole, before in zip(wholes, one.arrays, strict=True):
        np.testing.assert_array_equal(whole.numpy(), np.stack([before, before]))


STRIDED = [one for one in CALLS if one.arrays and one.arrays[0] is X and len(one.arrays) == 1]


@pytest.mark.parametrize("one", STRIDED, ids=repr)
def test_strided_views(one):
    whole = RNG.normal(size=(3, 10, 3, 4))
    given = paddle.to_tensor(whole)
    same(one(xp, [given[:, ::2, 1, :]]), one(expected_xp, [whole[:, ::2, 1, :]]))
    np.testing.assert_array_equal(given.numpy(), whole)


@pytest.mark.parametrize("one", CALLS, ids=repr)
def test_static_graph(one):
    """With an unknown batch size (indices that are not per sample keep their length)."""

    def none():
        return one(xp, [])

    def unary(a):
        return one(xp, [a])

    def binary(a, b):
        return one(xp, [a, b])

    def ternary(a, b, c):
        return one(xp, [a, b, c])

    function = (none, unary, binary, ternary)[len(one.arrays)]
    specs = [
        paddle.static.InputSpec(
            [None, *array.shape[1:]] if array.ndim > 1 else array.shape, str(array.dtype)
        )
        for array in one.arrays
    ]
    static = paddle.jit.to_static(function, input_spec=specs, full_graph=True)
    same(static(*map(paddle.to_tensor, one.arrays)), one(expected_xp, one.arrays))
    if one.arrays and one.name != "take":
        larger = [np.concatenate([array, array]) for array in one.arrays]
        same(static(*map(paddle.to_tensor, larger)), one(expected_xp, larger))


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(name):
    assert getattr(xp, name) == getattr(paddle, name.rstrip("_"))
    same(paddle.ones([2], dtype=getattr(xp, name)), np.ones(2, dtype=getattr(expected_xp, name)))


@pytest.mark.parametrize("kind", ["real floating", "integral"])
@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "bool",
        "complex64",
    ],
)
def test_isdtype(dtype, kind):
    expected = expected_xp.isdtype(np.dtype(dtype), kind)  # type: ignore[attr-defined]
    assert xp.isdtype(getattr(paddle, dtype), kind) == expected


def test_isdtype_of_bfloat16():
    """NumPy has none to compare with."""
    assert xp.isdtype(paddle.bfloat16, "real floating")
    assert not xp.isdtype(paddle.bfloat16, "integral")


def test_arange_on_a_device():
    x = paddle.ones([1])
    made = xp.arange(0, 3, dtype=xp.int64, device=x.place)
    assert made.place == x.place
    same(made, np.arange(3))


def test_astype_copies_unless_told_not_to():
    x = paddle.to_tensor(X)
    assert xp.astype(x, xp.float64, copy=False) is x
    copied = xp.astype(x, xp.float64)
    copied[0, 0, 0] = 100.0
    np.testing.assert_array_equal(x.numpy(), X)


def test_take_along_axis_does_not_broadcast():
    """One column of indices gives one column, as in the standard."""
    index = paddle.zeros([3, 1, 1], dtype="int64")
    assert tuple(xp.take_along_axis(paddle.to_tensor(X), index, axis=1).shape) == (3, 1, 1)


def test_every_name_is_tested():
    tested = {one.name for one in CALLS} | {*DTYPES, "isdtype"}
    assert sorted(tested) == sorted(xp.__all__)
    assert all(hasattr(xp, name) for name in xp.__all__)
