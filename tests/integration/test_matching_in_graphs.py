"""Matchings of patched models in compiled, exported and static graphs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from adapters.cases import OWN, Case
from adapters.test_matching import least_attended

from tomecore import matching

#: each reads something else: attention; values, and one of two plans for an image; weights of sizes; the
#: layer and norms; the layer on the host. The methods themselves are traced in test_matchings_everywhere.
MATCHINGS = [least_attended, *map(matching.find, ("ppt", "diffrate", "tofu", "random"))]
PLAIN = {case.fw.name: case for case in OWN if case.golden}
every = pytest.mark.parametrize(
    "chosen", MATCHINGS, ids=[matching.name_of(one) for one in MATCHINGS]
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), paddle.no_grad():
        yield


def merging(case: Case, chosen: Any) -> Any:
    return case.patched(r=[5, 0, 4], depth=3, matching=chosen)


def assert_same(found: Any, expected: Any, atol: float = 1e-11) -> None:
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=atol)


@every
def test_compiled_whole(chosen: Any) -> None:
    case = PLAIN["torch"]
    model = merging(case, chosen)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        x = case.tensors(batch)
        assert_same(compiled(x), model(x))


@every
def test_exported_with_any_batch(chosen: Any) -> None:
    case = PLAIN["torch"]
    model = merging(case, chosen)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (case.tensors(2),), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        x = case.tensors(size)
        assert_same(program.module()(x), model(x))


def test_a_compiled_model_follows_another_matching() -> None:
    """Dynamo guards the matching: the graph of the first is not used for the second."""
    case = PLAIN["torch"]
    model = merging(case, "random")
    compiled = torch.compile(model, backend="aot_eager")
    x = case.tensors(2)
    compiled(x)
    case.fw.tome.apply_patch(model, matching="kth")
    assert_same(compiled(x), model(x))


@every
def test_static_and_saved(chosen: Any, tmp_path: Any) -> None:
    """Programs of the unpatched model, too, differ from it by 1e-8 in float64."""
    case = PLAIN["paddle"]
    model = merging(case, chosen)
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float64")]
    static = paddle.jit.to_static(copy.deepcopy(model), input_spec=spec, full_graph=True)
    static.eval()
    for size in (1, 4):
        x = case.tensors(size)
        assert_same(static(x), model(x), 1e-7)
    paddle.jit.save(static, str(tmp_path / "model"))
    saved = paddle.jit.load(str(tmp_path / "model"))
    saved.eval()
    assert_same(saved(case.tensors(3)), model(case.tensors(3)), 1e-7)


def test_each_block_of_random_is_compiled() -> None:
    """The compiler takes the number of the layer for a symbol from the second block on."""
    case = PLAIN["torch"]
    model, images = case.patched(r=4, matching="random"), case.tensors()
    expected = model(images)
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    assert (model(images) - expected).abs().max() < 1e-12
    torch._dynamo.reset()
