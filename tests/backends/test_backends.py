"""The scatters of every backend against NumPy's, how a library is recognised, and how one is taught."""

from __future__ import annotations

import types
from typing import Any

import array_api_compat.numpy
import numpy as np
import paddle
import pytest
import reference
import torch
from libraries import LIBRARIES, Library

import tomecore as tc
from tomecore import backends
from tomecore.backends import Backend, backend_of
from tomecore.errors import ArgumentTypeError, ArgumentValueError

#: What a library gets of which nothing is known but its namespace.
FALLBACK = Backend("numpy on the standard fallback", array_api_compat.numpy)


@pytest.fixture(params=["numpy", "torch", "paddle", "fallback", "torch fallback"])
def scatters(request):
    """(backend, library): every backend, and the standard fallback on two libraries."""
    name = request.param
    library = LIBRARIES[{"fallback": "numpy", "torch fallback": "torch"}.get(name, name)]
    backend = backend_of(library.to_array(np.ones(1)))
    if name == "fallback":
        backend = FALLBACK
    elif name == "torch fallback":
        backend = Backend("torch on the standard fallback", backend.xp)
    return backend, library


def scattered(ufunc, base, index, updates):
    out = base.copy()
    for sample in range(len(base)):
        ufunc.at(out[sample], index[sample], updates[sample])
    return out


CASES = {
    "distinct": np.array([[0, 3], [2, 1]]),
    "repeated": np.array([[1, 1, 1, 3, 1], [0, 0, 2, 2, 0]]),
    "one update": np.array([[3], [0]]),
    "no update": np.zeros((2, 0), dtype=int),
}


@pytest.mark.parametrize("index", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("name", ["scatter_add", "scatter_max"])
def test_scatter(scatters, rng, name, dtype, width, index):
    backend, library = scatters
    base = (rng.normal(size=(2, 4, width)) * 10).astype(dtype)
    updates = (rng.normal(size=(*index.shape, width)) * 10).astype(dtype)
    arrays = [library.to_array(values) for values in (base, index, updates)]
    out = getattr(backend, name)(*arrays)
    assert str(out.dtype).endswith(dtype)
    ufunc = {"scatter_add": np.add, "scatter_max": np.maximum}[name]
    tolerance = {"float32": 1e-5, "float64": 1e-13, "int64": 0}[dtype]
    np.testing.assert_allclose(
        library.to_numpy(out),
        scattered(ufunc, base, index, updates),
        rtol=tolerance,
        atol=tolerance,
    )
    for array, before in zip(arrays, (base, index, updates), strict=True):
        np.testing.assert_array_equal(library.to_numpy(array), before)


@pytest.mark.parametrize("name", ["scatter_add", "scatter_max"])
def test_scatter_returns_a_new_array(scatters, name):
    backend, library = scatters
    base = library.to_array(np.ones((1, 2, 3)))
    index = library.to_array(np.array([[1]]))
    out = getattr(backend, name)(base, index, library.to_array(np.full((1, 1, 3), 5.0)))
    assert out is not base
    assert not np.shares_memory(library.to_numpy(out), library.to_numpy(base))


@pytest.mark.parametrize("case", ["distinct", "repeated", "one update"])
def test_add_rows_and_sizes(scatters, rng, case):
    """As scatter_add; they may write into their base, and know the flat rows."""
    (backend, library), index = scatters, CASES[case]
    base, updates = rng.normal(size=(2, 4, 5)), rng.normal(size=(*index.shape, 5))
    rows = (index + 4 * np.arange(2)[:, None]).reshape(-1)
    expected = scattered(np.add, base, index, updates)
    flat = (base.reshape(-1, 5).copy(), index, updates.reshape(-1, 5), rows)
    out = backend.add_rows(*map(library.to_array, flat), 4)
    np.testing.assert_allclose(library.to_numpy(out), expected.reshape(-1, 5), rtol=1e-13)
    sizes = (base[:, :, 0].copy(), index, updates[:, :, 0])
    out = backend.add_sizes(*map(library.to_array, sizes))
    np.testing.assert_allclose(library.to_numpy(out), expected[:, :, 0], rtol=1e-13)


@pytest.mark.parametrize("tokens", [5, 210])
def test_maxima_and_their_places(scatters, rng, tokens):
    """Few numbers and many, which libraries handle differently; the first of equal ones."""
    backend, library = scatters
    x, index = rng.normal(size=(2, tokens, tokens)), rng.integers(0, tokens, size=(2, 3))
    x[:, :, [1, 3]] = 9
    given, rows = library.to_array(x), library.to_array(index)
    best, where = backend.max_rows(given)
    np.testing.assert_array_equal(library.to_numpy(best), x.max(2))
    for known in (where, None):
        out = library.to_numpy(backend.argmax_rows(given, known, rows))
        np.testing.assert_array_equal(out, np.ones((2, 3)))
    x[:, :, [1, 3]] = -9
    given = library.to_array(x)
    out = library.to_numpy(backend.argmax_rows(given, backend.max_rows(given)[1], rows))
    np.testing.assert_array_equal(out, np.take_along_axis(x.argmax(2), index, axis=1))


@pytest.mark.parametrize("first", [0, 3])
def test_every_second(scatters, rng, first):
    backend, library = scatters
    x = rng.normal(size=(2, 7, 4))
    out = library.to_numpy(backend.every_second(library.to_array(x), first))
    np.testing.assert_array_equal(out, x[:, first::2])


def test_norm(scatters, rng):
    backend, library = scatters
    x = rng.normal(size=(2, 3, 4))
    out = library.to_numpy(backend.norm(library.to_array(x)))
    np.testing.assert_allclose(out, np.linalg.norm(x, axis=2, keepdims=True), rtol=1e-14)


def test_permute(scatters, rng):
    backend, library = scatters
    index = np.stack([rng.permutation(7) for _ in range(3)])
    values = rng.integers(0, 9, size=(3, 7))
    out = library.to_numpy(backend.permute(library.to_array(index), library.to_array(values)))
    np.testing.assert_array_equal(np.take_along_axis(out, index, axis=1), values)


@pytest.mark.parametrize("heads", [1, 3, 6, 7])
@pytest.mark.parametrize("axis", [1, 2])
def test_sum_over_heads(library, rng, axis, heads):
    """Libraries have ways of their own; strided, as keys are."""
    x = rng.normal(size=(2, heads, 5, 4))
    x = x if axis == 1 else x.swapaxes(1, 2)
    given = library.to_array(x)
    xp = backend_of(given).xp
    np.testing.assert_allclose(library.to_numpy(xp.sum(given, axis=axis)), x.sum(axis), rtol=1e-13)
    np.testing.assert_array_equal(library.to_numpy(given), x)


@pytest.mark.parametrize("name", ["scatter_add", "scatter_max"])
@pytest.mark.parametrize("of", ["base", "updates"])
def test_gradient(differentiable, rng, name, of):
    """Towards both arrays, repeated indices included; by central differences."""
    library = differentiable
    backend = backend_of(library.to_array(np.ones(1)))
    index = library.to_array(CASES["repeated"])
    numbers = {"base": rng.normal(size=(2, 4, 3)), "updates": rng.normal(size=(2, 5, 3))}
    weights = rng.normal(size=(2, 4, 3))

    def function(x):
        given = {key: library.to_array(values) for key, values in numbers.items()} | {of: x}
        scatter = getattr(backend, name)
        return scatter(given["base"], index, given["updates"]) * library.to_array(weights)

    gradient = library.gradient(function, numbers[of])
    step = 1e-6
    for place in np.ndindex(numbers[of].shape):
        ends = []
        for sign in (1, -1):
            moved = numbers[of].copy()
            moved[place] += sign * step
            ends.append(library.to_numpy(function(library.to_array(moved))).sum())
        assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_batch_index(scatters, dtype):
    backend, library = scatters
    index = np.array([[7, 8], [7, 8], [7, 8]], dtype=dtype)
    samples = backend.batch_index(library.to_array(index))
    assert str(samples.dtype).endswith(dtype)
    assert library.to_numpy(samples).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("batch", [1, 3])
def test_batched_arange(scatters, batch, dtype):
    backend, library = scatters
    index = library.to_array(np.zeros((batch, 2), dtype=dtype))
    for _ in range(2):
        numbers = backend.batched_arange(index, 1, 8, 3)
        assert str(numbers.dtype).endswith(dtype)
        assert library.to_numpy(numbers).tolist() == [[1, 4, 7]] * batch


@pytest.mark.parametrize("batch", [1, 3])
def test_flat_rows(scatters, batch):
    """A part of an array too, which is not contiguous."""
    backend, library = scatters
    index = np.array([[3, 1, 0], [0, 2, 0], [1, 1, 0]])[:batch]
    rows = backend.flat_rows(library.to_array(index)[:, :2], 5)
    assert library.to_numpy(rows).tolist() == [3, 1, 5, 7, 11, 11][: 2 * batch]


def test_detach(differentiable):
    x = differentiable.to_array(np.ones(3))
    backend = backend_of(x)
    if differentiable.name == "torch":
        x.requires_grad = True
        assert not backend.detach(x).requires_grad
    else:
        x.stop_gradient = False
        assert backend.detach(x).stop_gradient


def test_every_library_is_known_by_its_name(library):
    assert backend_of(library.to_array(np.ones(2))).name == library.name


def test_the_same_backend_each_time(library):
    one, other = library.to_array(np.ones(2)), library.to_array(np.ones((3, 3), dtype="int64"))
    assert backend_of(one) is backend_of(other)
    assert backend_of(one, other, one) is backend_of(one)


class TensorOfMine(torch.Tensor):
    pass


class ArrayOfMine(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (torch.ones(1, 8, 4).as_subclass(TensorOfMine), "torch"),
        (torch.nn.Parameter(torch.ones(1, 8, 4)), "torch"),
        (np.ones((1, 8, 4)).view(ArrayOfMine), "numpy"),
        (paddle.create_parameter([1, 8, 4], "float64"), "paddle"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses(array, name):
    assert backend_of(array) is backend_of(LIBRARIES[name].to_array(np.ones(1)))
    assert tc.bipartite_soft_matching(array, 2).num_slots == 6


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([1.0], "builtins.list"),
        (3.0, "builtins.float"),
        ("x", "builtins.str"),
        (None, "builtins.NoneType"),
        (types.SimpleNamespace(shape=(1, 8, 4)), "types.SimpleNamespace"),
        (torch.Size([3]), "torch.Size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_array(value, name):
    with pytest.raises(
        ArgumentTypeError, match=rf"expected an array .*; got {name}\. .*backends\.register"
    ):
        backend_of(value)


def test_mixed_libraries():
    arrays = [LIBRARIES[name].to_array(np.ones(2)) for name in ("torch", "numpy", "paddle")]
    with pytest.raises(
        ArgumentTypeError, match=r"one library; got torch, numpy, paddle\. .*from_dlpack"
    ):
        backend_of(*arrays)


class Wrapped:
    """An array library of one class, which wraps NumPy's arrays.

    It offers only the operations that the algorithms use, so they cannot rely on anything else.
    """

    def __init__(self, values):
        self.values = values

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    device = "cpu"

    def __array_namespace__(self, api_version=None):
        return toy

    def to_device(self, device, stream=None):
        return self

    def __getitem__(self, key):
        return Wrapped(self.values[key])


def bare(value):
    if isinstance(value, list | tuple):
        return type(value)(map(bare, value))
    return value.values if isinstance(value, Wrapped) else value


def wrapping(function):
    def wrapped(*args, **kwargs):
        kwargs.pop("device", None)
        out = function(*map(bare, args), **kwargs)
        return Wrapped(out) if isinstance(out, np.ndarray | np.generic) else out

    return wrapped


for operator in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "eq", "gt"):
    name = f"__{operator}__"
    setattr(Wrapped, name, wrapping(getattr(np.ndarray, name)))

toy: Any = types.ModuleType("toy")
for name in (
    *(
        "arange",
        "argmax",
        "argsort",
        "asarray",
        "astype",
        "clip",
        "concat",
        "isdtype",
        "matmul",
        "max",
    ),
    *("ones_like", "permute_dims", "reshape", "sort", "sqrt", "sum", "take"),
    *("exp", "take_along_axis", "where", "zeros_like"),
):
    setattr(toy, name, wrapping(getattr(array_api_compat.numpy, name)))
toy.float32, toy.float64, toy.int64 = np.dtype("float32"), np.dtype("float64"), np.dtype("int64")

TOY = Library("toy", Wrapped, lambda array: array.values)
#: What is known of the toy is where its class is defined: here.
TOY_MODULE = __name__.partition(".")[0]


def check_toy():
    """Matching, merging and following tokens on the toy equal the reference."""
    rng = np.random.default_rng(0)
    keys, x = rng.normal(size=(2, 11, 4)), rng.normal(size=(2, 11, 3))
    size = rng.integers(1, 4, size=(2, 11)).astype("float32")
    plan = tc.bipartite_soft_matching(Wrapped(keys), 4, protected=1)
    expected = [reference.bipartite(one, 4, 1) for one in keys]
    np.testing.assert_array_equal(plan.slots.values, [one.slots() for one in expected])
    for reduce in ("sum", "mean", "max"):
        merged = plan.merge(Wrapped(x), reduce)
        wanted = [reference.merge(*one, reduce) for one in zip(expected, x, strict=True)]
        np.testing.assert_allclose(merged.values, wanted, rtol=1e-12, atol=1e-13)
    mean, sizes = tc.merge_weighted(plan, Wrapped(x), Wrapped(size))
    wanted = [reference.merge_weighted(*one) for one in zip(expected, x, size, strict=True)]
    np.testing.assert_allclose(mean.values, [one for one, _ in wanted], rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(sizes.values, [one for _, one in wanted])
    tc.compose(plan.slots, tc.kth_bipartite_soft_matching(mean, 3))
    tc.random_bipartite_soft_matching(mean, 3)
    return plan.backend


def test_a_library_that_speaks_the_standard_needs_no_line(clean_registry):
    assert check_toy().name == "toy"


def test_register_a_backend(clean_registry):
    used = []

    def scatter_add(base, index, updates):
        used.append("scatter_add")
        return Wrapped(scattered(np.add, base.values, index.values, updates.values))

    mine = Backend("mine", toy, scatter_add)
    backends.register(TOY_MODULE, mine)
    assert check_toy() is mine
    assert used


def test_register_a_function_that_is_called_when_the_first_array_comes(clean_registry):
    calls = []

    def load():
        calls.append("load")
        return Backend("lazy", toy)

    backends.register(TOY_MODULE, load)
    backend_of(np.ones(2))
    assert calls == []
    assert check_toy().name == "lazy"
    check_toy()
    assert calls == ["load"]


def test_register_replaces_what_was_known(clean_registry):
    before = backend_of(np.ones(2))
    backends.register("numpy", FALLBACK)
    assert backend_of(np.ones(2)) is FALLBACK
    assert backend_of(np.ones(2)) is not before


def test_a_backend_may_be_given(library, rng):
    """``backend=`` spares the look-up, and its scatter is the one that runs."""
    keys = library.to_array(rng.normal(size=(2, 9, 4)))
    mine = Backend("mine", backend_of(keys).xp)
    for match in (
        tc.bipartite_soft_matching,
        tc.kth_bipartite_soft_matching,
        tc.random_bipartite_soft_matching,
    ):
        plan, expected = match(keys, 3, backend=mine), match(keys, 3)
        assert plan.backend is mine
        np.testing.assert_array_equal(
            library.to_numpy(plan.slots), library.to_numpy(expected.slots)
        )


@pytest.mark.parametrize("module", ["", "a.b", "a-b", 3, None], ids=repr)
def test_register_wants_a_module_name(clean_registry, module):
    before = dict(backends._known)
    with pytest.raises(
        ArgumentValueError, match=r"`module` must be the top-level module name .*'cupy'; got "
    ):
        backends.register(module, FALLBACK)
    assert backends._known == before


@pytest.mark.parametrize("backend", [None, "numpy", np.array(1)], ids=["None", "str", "array"])
def test_register_wants_a_backend(clean_registry, backend):
    before = dict(backends._known)
    with pytest.raises(
        ArgumentTypeError,
        match=rf"`backend` must be .*Backend or a function.*; got {type(backend).__name__}",
    ):
        backends.register("cupy", backend)
    assert backends._known == before


def test_constants_of_torch_are_shared_only_where_that_is_safe(monkeypatch):
    """Not those of a default device, of a fake one, or of a graph that is being captured."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tomecore.backends import torch as torch_backend

    cpu = torch.device("cpu")
    with torch.inference_mode():
        shared = torch_backend.arange(0, 5, device=cpu)
    assert not shared.is_inference()
    assert torch_backend.arange(0, 5, device=cpu) is shared
    assert torch_backend.arange(0, 5) is not torch_backend.arange(0, 5)
    with FakeTensorMode():
        assert type(torch_backend.arange(0, 5, device=cpu)) is not torch.Tensor
    assert torch_backend.arange(0, 5, device=cpu) is shared
    made = []
    monkeypatch.setattr(torch_backend, "_capturing", lambda: True)
    monkeypatch.setattr(torch_backend.torch, "arange", lambda *a, **k: made.append(k["device"]))
    for _ in range(2):
        torch_backend.arange(0, 5, device=torch.device("cuda"))
    assert len(made) == 2


def test_a_backend_of_functions():
    """Passed by position and by name, under old names too; None stands for the default."""
    calls = []

    def noting(name, function):
        return lambda *arguments: calls.append(name) or function(*arguments)

    add, samples = noting("add", FALLBACK.scatter_add), noting("samples", FALLBACK.batch_index)
    numbers = noting("numbers", FALLBACK.batched_arange)
    mine = Backend("mine", array_api_compat.numpy, add, None, samples=samples, numbers=numbers)
    index = np.array([[1, 1], [0, 1]])
    mine.scatter_add(np.zeros((2, 2, 1)), index, np.ones((2, 2, 1)))
    np.testing.assert_array_equal(mine.flat_rows(index, 2), [1, 1, 2, 3])
    np.testing.assert_array_equal(mine.numbers(index, 0, 2, 1), mine.batched_arange(index, 0, 2, 1))
    np.testing.assert_array_equal(mine.samples(index), [[0], [1]])
    assert calls == ["add", "samples", "numbers", "numbers", "samples"]
    assert repr(mine) == "Backend('mine')"


def test_a_backend_of_a_subclass():
    class Mine(Backend):
        def batch_index(self, index):
            return 10 * Backend.batch_index(self, index)

    mine = Mine("mine", array_api_compat.numpy)
    np.testing.assert_array_equal(mine.flat_rows(np.array([[1], [2]]), 3), [1, 32])
    assert repr(mine) == "Mine('mine')"


@pytest.mark.parametrize(
    ("functions", "named", "message"),
    [
        ((), {"scater_add": max}, r"`scater_add` must be one of .*Did you mean 'scatter_add'\?"),
        ((), {"xyz": max}, r"`xyz` must be one of .*scatter_add, scatter_max, .*average_rows\.$"),
        ((max,), {"scatter_add": max}, "`scatter_add` was passed twice; pass one function"),
        ((), {"samples": max, "batch_index": max}, "`batch_index` was passed twice"),
        ((3,), {}, r"`scatter_add` must be a function .*Backend\.scatter_add; got int"),
        ((None,) * 25, {}, "a name, a namespace and at most 24 functions; got 25"),
    ],
)
def test_functions_that_a_backend_refuses(functions, named, message):
    with pytest.raises(ArgumentTypeError, match=message):
        Backend("mine", array_api_compat.numpy, *functions, **named)
