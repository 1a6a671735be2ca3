"""Faults that show only on a GPU: values read by the host, tensors created on another device.

These tests need no GPU. They have three substitutes: methods of a tensor that wait for its value raise;
functions that create tensors must get a device; and the exported program contains no operator that copies or
branches.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import numpy as np
import paddle
import pytest
from adapters.test_paddle_only import static

import tomecore as tc
from paddle_production.models import CLAS, DISTILLED, OWN_PLAIN, PPIM
from tomecore.adapters import paddle as tome
from tomecore.adapters.paddle import HOST

#: Methods that need a value: on a GPU each one stops everything.
READERS = (
    *("numpy", "item", "tolist", "__array__", "__bool__", "__int__", "__float__", "__index__"),
    *("__nonzero__", "__long__", "__contains__", "__iter__", "__hex__", "cpu", "cuda"),
)
#: Functions that create a tensor on the global device unless they get another.
CREATORS = (
    *("arange", "to_tensor", "ones", "zeros", "full", "empty", "eye", "linspace", "randint"),
    *("rand", "randn", "randperm", "uniform", "normal", "tril_indices", "triu_indices", "assign"),
)
CASES = pytest.mark.parametrize(
    "case", [OWN_PLAIN, CLAS, DISTILLED, PPIM], ids=lambda case: case.name
)
SETTINGS = pytest.mark.parametrize(
    "settings",
    [{}, {"restore": False}, {"trace_source": True, "prop_attn": False}],
    ids=["default", "shorter", "source"],
)


class HostSync(Exception):
    """A value was read."""


def refuse(name):
    def method(self, *args, **kwargs):
        raise HostSync(name)

    return method


@contextlib.contextmanager
def unreadable():
    """Make every read of a value an error."""
    own = {name: vars(paddle.Tensor).get(name) for name in READERS if hasattr(paddle.Tensor, name)}
    try:
        for name in own:
            setattr(paddle.Tensor, name, refuse(name))
        yield
    finally:
        for name, method in own.items():
            delattr(paddle.Tensor, name) if method is None else setattr(paddle.Tensor, name, method)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.numpy(),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: float(x.sum()),
        lambda x: int(x.sum()),
        lambda x: np.asarray(x),
        lambda x: list(range(x.sum().astype("int64"))),
        lambda x: 1 if x.sum() > 0 else 0,
    ],
    ids=["numpy", "item", "tolist", "bool", "float", "int", "asarray", "range", "if"],
)
def test_a_value_that_is_read_is_noticed(read):
    x = paddle.ones([2])
    read(x)
    with pytest.raises(HostSync), unreadable():
        read(x)
    read(x)


def through_blocks(case, model, x):
    """As the model's own loop; what is around it is the library's business."""
    for block in case.blocks(model):
        x = block(x)
    return x


@CASES
@SETTINGS
def test_no_value_is_read(case, settings):
    """Forward, results, and backward."""
    model, images = case.patched(r=8, **settings), case.images()
    expected = case.fw.gradients(
        model, lambda: (through_blocks(case, model, case.entering(model, images)) ** 2).sum()
    )
    case.fw.clear_gradients(model)
    x = case.entering(model, images)
    with unreadable():
        y = through_blocks(case, model, x)
        model.tome.sizes, model.tome.tokens, model.tome.unmerge(model.tome.sizes.unsqueeze(-1))
        (y**2).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert np.array_equal(parameter.grad.numpy(), expected[name]), name


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_no_value_is_read_in_a_whole_model():
    """tomecore's own class reads none around the blocks either, and every layer may be requested."""
    model, images = OWN_PLAIN.patched(r=(6, -1)), OWN_PLAIN.tensors()
    with unreadable():
        model(images).sum().backward()
        with model.tome.all_tokens():
            model(images)
    model.r = lambda num_layers, num_tokens, protected: [num_tokens // 4] * num_layers
    with unreadable(), paddle.no_grad():
        model(images)


@pytest.fixture
def created(monkeypatch):
    """The calls of creating functions: (name, the device that they got, or None).

    The device of any tensor is a mark here, so that a device from another source is noticed.
    """
    calls = []
    backend = HOST.backend()
    look_up = backend.device

    class Mark:
        def __init__(self, place):
            self.place = place

    def spy(name, function):
        def call(*args, **kwargs):
            told = None
            for key in ("device", "place"):
                if isinstance(kwargs.get(key), Mark):
                    told = kwargs[key]
                    kwargs[key] = told.place
            calls.append((name, told))
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(backend, "device", lambda x: Mark(look_up(x)))
    for name in CREATORS:
        monkeypatch.setattr(paddle, name, spy(name, getattr(paddle, name)))
    return calls


@CASES
@SETTINGS
def test_tensors_are_created_where_the_activations_are(case, settings, created):
    model, images = case.patched(r=8, **settings), case.images()
    x = case.entering(model, images)
    created.clear()
    through_blocks(case, model, x).sum().backward()
    assert Counter(name for name, _ in created)["arange"] >= 4
    assert [name for name, told in created if told is None] == []


def test_the_algorithms_create_where_the_keys_are(created):
    keys = paddle.randn([2, 33, 8])
    created.clear()
    for plan in (
        tc.bipartite_soft_matching(keys, 8, protected=1),
        tc.kth_bipartite_soft_matching(keys, 4),
        tc.random_bipartite_soft_matching(keys, 8),
        tc.bipartite_soft_matching(keys, 0),
    ):
        merged, _ = tc.merge_weighted(plan, keys)
        plan.unmerge(merged)
        tc.compose(plan.slots, tc.bipartite_soft_matching(merged, 4))
        for reduce in ("mean", "sum", "max"):
            plan.merge(keys, reduce)
    assert {name for name, _ in created} == {"arange", "to_tensor"}
    assert all(told is not None for _, told in created)
    paddle.arange(3)
    assert created[-1] == ("arange", None)  # and the spy can tell


#: Operators that wait for a value, copy between devices, or branch.
HOST_OPERATORS = (
    *("nonzero", "masked_select", "if", "while", "memcpy", "memcpy_d2h", "memcpy_h2d", "print"),
    *("py_func", "unique", "unique_consecutive", "share_data", "assign_value", "select_input"),
    *("is_empty", "where_index", "tensor_to_list", "array_read", "array_write_", "assert"),
)
#: Operators whose numbers and shapes are arguments that stay on the host anyway.
ARGUMENTS = (
    *("scale", "slice", "strided_slice", "reshape", "unsqueeze", "squeeze", "full_like", "cumsum"),
    *("arange", "gather", "concat", "sum", "mean", "argmax", "expand", "index_add", "split"),
    *("dropout", "full_with_tensor", "clip"),
)


def program_of(model):
    """The operators of an exported model."""
    program = static(model).forward.concrete_program.main_program
    return list(program.global_block().ops)


def name_of(operator):
    return operator.name().removeprefix("pd_op.")


def consumers(operator):
    """Names of the operators that use a result, through the lists and shapes put together of it."""
    for result in operator.results():
        for user in result.all_used_ops():
            if user.name() in ("builtin.combine", "pd_op.stack"):
                yield from consumers(user)
            else:
                yield name_of(user)


@CASES
def test_operators_of_the_exported_program(case):
    merging = program_of(case.patched(depth=3, r=8))
    assert {name_of(op) for op in merging} & {*HOST_OPERATORS} == set()
    assert any(name_of(op) == "scatter" for op in merging)
    for operator in merging:
        place = operator.attrs().get("place")
        if place is not None and place.is_cpu_place():
            assert name_of(operator) in ("full", "full_int_array")
            assert {*consumers(operator)} <= {*ARGUMENTS}, name_of(operator)


def test_operators_that_would_be_noticed():
    """A layer that looks for values exports an operator of the list."""

    class Looks(paddle.nn.Layer):
        def forward(self, x):
            return x[x > 0].sum()

    layer = paddle.jit.to_static(
        Looks(), input_spec=[paddle.static.InputSpec([None, 3], "float32")], full_graph=True
    )
    names = {name_of(op) for op in layer.forward.concrete_program.main_program.global_block().ops}
    assert names & {*HOST_OPERATORS}


def test_static_shapes_where_they_can_be():
    """Only the batch is unknown in what the blocks exchange: token counts are numbers in the graph."""
    tokens = set()
    for operator in program_of(tome.apply_patch(OWN_PLAIN.model(depth=3), r=8)):
        for result in operator.results():
            if result.is_dense_tensor_type():
                shape = result.shape
                if len(shape) == 3 and shape[2] == 32:
                    tokens.add(shape[1])
    assert {65, 57, 49, 41} <= tokens
    assert -1 not in tokens
