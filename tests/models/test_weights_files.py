"""Weights files: loaded strictly, and a file that could run code is refused before it can."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import paddle
import pytest
import torch

from tomecore.frameworks import predict, to_numpy
from tomecore.models import paddle as paddle_models
from tomecore.models import torch as torch_models
from tomecore.models.pdparams import read_pdparams

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)


def torch_model() -> Any:
    return torch_models.VisionTransformer(num_classes=5, **TINY)


def paddle_model() -> Any:
    return paddle_models.VisionTransformer(class_num=5, **TINY)


def values(model: Any) -> dict[str, np.ndarray]:
    return {name: to_numpy(value).copy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch_files(tmp_path: Any, images: np.ndarray, key: str | None) -> None:
    source, target = torch_model(), torch_model()
    state = source.state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "weights.pth")
    assert torch_models.load_weights(target, tmp_path / "weights.pth") is target
    np.testing.assert_array_equal(predict(target, images), predict(source, images))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_written_by_paddle(tmp_path: Any, images: np.ndarray, protocol: int) -> None:
    source, target = paddle_model(), paddle_model()
    path = str(tmp_path / "weights.pdparams")
    paddle.save(source.state_dict(), path, protocol=protocol)
    assert paddle_models.load_weights(target, path) is target
    np.testing.assert_array_equal(predict(target, images), predict(source, images))


def test_paddle_bookkeeping_is_skipped_and_bfloat16_is_widened(tmp_path: Any) -> None:
    path = tmp_path / "weights.pdparams"
    half = (np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    state = {"a": np.arange(3.0), "b": half, "StructuredToParameterName@@": {"a": "linear_0.w_0"}}
    path.write_bytes(pickle.dumps(state, protocol=2))
    read = read_pdparams(path)
    assert read.keys() == {"a", "b"}
    np.testing.assert_array_equal(read["b"], [1.0, -2.5])


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Harmful(), r"refused to load (posix|nt)\.system: a weights file holds only numpy arrays"),
        ({"a": Harmful()}, r"refused to load (posix|nt)\.system"),
        ({"a": np.array([Harmful()], object)}, r"refused to load (posix|nt)\.system"),
        ({"a": eval}, r"refused to load builtins\.eval|refused to load __builtin__\.eval"),
        ([1, 2], "it holds a list, not a dict of name -> array"),
        ({"a": "text"}, "entry 'a' is a str, not an array of numbers"),
    ],
    ids=["code", "code inside", "object array", "builtin", "list", "text"],
)
def test_files_that_are_more_than_arrays(
    tmp_path: Any, content: Any, text: str, protocol: int
) -> None:
    path = tmp_path / "weights.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    model = paddle_model()
    before = values(model)
    with pytest.raises(ValueError, match=text):
        paddle_models.load_weights(model, path)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_junk_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "weights.pdparams"
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="cannot read"):
        read_pdparams(path)


def test_torch_pickles_are_refused_too(tmp_path: Any) -> None:
    torch.save({"a": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        torch_models.load_weights(torch_model(), tmp_path / "weights.pth")


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_weights_that_do_not_fit_change_nothing(tmp_path: Any, framework: str) -> None:
    module = {"torch": torch_models, "paddle": paddle_models}[framework]
    model = {"torch": torch_model, "paddle": paddle_model}[framework]()
    state = model.state_dict()
    state["extra"] = state.pop("head.bias")
    state["norm.weight"] = state["norm.weight"][:3]
    suffix = {"torch": "pth", "paddle": "pdparams"}[framework]
    path = str(tmp_path / f"weights.{suffix}")
    (torch if framework == "torch" else paddle).save(dict(state), path)
    before = values(model)
    text = r"missing: head\.bias; unexpected: extra; of another shape: norm\.weight \(3,\), not \(16,\)"
    with pytest.raises(ValueError, match=text):
        module.load_weights(model, path)
    for name, value in values(model).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("module", [torch_models, paddle_models], ids=["torch", "paddle"])
def test_unknown_kinds_of_files(module: Any) -> None:
    model = torch_model() if module is torch_models else paddle_model()
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        module.load_weights(model, "weights.npz")
