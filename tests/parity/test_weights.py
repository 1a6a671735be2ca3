"""Weights between layouts: every key accounted for, or a clear error and an untouched model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pairs import images, pair

from tomecore import parity
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.frameworks import predict


@pytest.mark.parametrize(
    "arguments",
    [{}, {"distilled": True}, {"class_token": False, "global_pool": "avg"}],
    ids=["class token", "distilled", "average pool"],
)
def test_there_and_back_is_the_same(arguments: dict[str, object]) -> None:
    model_a, model_b = pair(depth=2, **arguments)
    there = parity.convert_weights(model_a.state_dict(), source="timm", target="plsc")
    assert {n: v.shape for n, v in there.items()} == {
        n: tuple(v.shape) for n, v in model_b.state_dict().items()
    }
    back = parity.convert_weights(there, source="plsc", target="timm")
    for name, value in model_a.state_dict().items():
        np.testing.assert_array_equal(back[name], value.numpy())


def test_linear_weights_are_transposed_and_nothing_else() -> None:
    weights = {"head.weight": np.arange(6.0).reshape(2, 3), "pos_embed": np.ones((1, 2, 3))}
    converted = parity.convert_weights(weights, source="timm", target="plsc")
    np.testing.assert_array_equal(converted["head.weight"], weights["head.weight"].T)
    np.testing.assert_array_equal(converted["pos_embed"], weights["pos_embed"])
    same = parity.convert_weights(weights, source="timm", target="timm")
    np.testing.assert_array_equal(same["head.weight"], weights["head.weight"])


def test_paddle_to_torch() -> None:
    model_a, model_b = pair(depth=2)
    expected = predict(model_a, images(2))
    with torch.no_grad():
        for parameter in model_a.parameters():
            parameter.zero_()
    assert parity.transfer_weights(model_b, model_a) is model_a
    np.testing.assert_allclose(predict(model_a, images(2)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["blocks.0.ls1.gamma", "blocks.0.attn.q_norm.weight", "reg_token"])
def test_a_weight_without_a_place_is_refused(name: str) -> None:
    with pytest.raises(ArgumentValueError, match=rf"1 of 2 weights have no place.*{name}"):
        parity.convert_weights(
            {"cls_token": np.ones(1), name: np.ones(1)}, source="timm", target="plsc"
        )


def test_unknown_layouts_and_types_are_refused() -> None:
    with pytest.raises(
        ArgumentValueError, match=r"`target` must be one of 'timm', 'plsc'; got 'jax'"
    ):
        parity.convert_weights({}, source="timm", target="jax")
    with pytest.raises(ArgumentTypeError, match="`weights` must be a mapping"):
        parity.convert_weights([], source="timm", target="plsc")  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match=r"'head.weight' must be the 2-D weight"):
        parity.convert_weights({"head.weight": np.ones(3)}, source="timm", target="plsc")


def test_another_architecture_is_refused_and_untouched() -> None:
    model_a, _ = pair(depth=3)
    _, model_b = pair(depth=2)
    before = {name: value.numpy().copy() for name, value in model_b.state_dict().items()}
    with pytest.raises(ArgumentValueError, match=r"12 differ: blocks\.2\.attn\.proj\.bias \(given"):
        parity.transfer_weights(model_a, model_b)
    for name, value in model_b.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
