"""torch and Paddle answer the same questions, and give the same answers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tomecore import frameworks
from tomecore.errors import TomeError
from tomecore.frameworks import RUNTIMES, Paddle, Torch, runtime_of, to_numpy

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(params=RUNTIMES)
def model(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(f"tomecore.models.{request.param}").VisionTransformer(**SMALL)


def questions(runtime: type) -> set[str]:
    return {name for name in vars(runtime) if not name.startswith("_")}


def test_both_have_the_same_names() -> None:
    assert questions(Torch) == questions(Paddle)
    assert {name: runtime.name for name, runtime in RUNTIMES.items()} == {
        name: name for name in frameworks.FRAMEWORKS
    }


def test_hooks_modules_and_gradients(model: Any) -> None:
    runtime, seen = runtime_of(model), []
    modules = dict(runtime.named_modules(model))
    assert modules[""] is model
    assert modules["blocks.1.attn"] is model.blocks[1].attn
    hook = runtime.after_forward(model.blocks[1], lambda module, args, output: seen.append(output))
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    x = runtime.tensor(images, "cpu", "float32")
    output = model(x)
    hook.remove()
    model(x)
    assert [tuple(one.shape) for one in seen] == [(2, 17, 24)]
    runtime.to_float32(output).sum().backward()
    weight = next(iter(model.parameters()))
    assert float(abs(weight.grad).sum()) > 0
    runtime.forget_gradients(model)
    assert weight.grad is None
    for context in (runtime.no_grad, runtime.fastest):
        with context():
            inside = model(x)
        assert getattr(inside, "stop_gradient", not inside.requires_grad)
    np.testing.assert_allclose(to_numpy(inside), to_numpy(output), atol=1e-5)


def test_a_tensor_has_the_place_and_dtype_that_are_named(model: Any) -> None:
    runtime, parameter = runtime_of(model), next(iter(model.parameters()))
    array = np.arange(6.0).reshape(2, 3).T  # not contiguous
    named = runtime.tensor(array, "cpu", "float32")
    like = runtime.tensor(array, runtime.device_of(parameter), parameter.dtype)
    for tensor in (named, like):
        assert tensor.dtype == parameter.dtype
        np.testing.assert_array_equal(to_numpy(tensor), array)
    runtime.move(model, "cpu", "float64")
    assert "float64" in str(next(iter(model.parameters())).dtype)


def test_weights_that_paddle_does_not_take() -> None:
    model = importlib.import_module("tomecore.models.paddle").VisionTransformer(**SMALL)
    weights = {name: to_numpy(value) for name, value in model.state_dict().items()}
    del weights["head.bias"]
    with (
        pytest.warns(UserWarning, match="Skip loading for head.bias"),
        pytest.raises(TomeError, match=r"Paddle did not take the weights \['head.bias'\]"),
    ):
        runtime_of(model).load_state(model, weights)
