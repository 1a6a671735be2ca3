"""Run a model of any framework on NumPy images. Beside the core: the demo, benchmarks and parity use it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np

from tomecore.errors import ArgumentTypeError, TomeError

__all__ = [
    "FRAMEWORKS",
    "evaluating",
    "framework_of",
    "logits_of",
    "named_modules",
    "predict",
    "require",
    "to_numpy",
    "to_tensor",
]

#: framework -> what to install where it is missing
FRAMEWORKS = {
    "torch": 'pip install "tomecore[torch]"',
    "paddle": 'pip install "tomecore[paddle-cpu]"',
}


def require(framework: str) -> None:
    """Raise, naming the command that installs it, if a framework is missing."""
    if importlib.util.find_spec(framework) is None:
        raise TomeError(f"{framework} is not installed; install it with: {FRAMEWORKS[framework]}")


def framework_of(model: Any) -> str:
    """ "torch" or "paddle", by the classes the model derives from."""
    for cls in type(model).__mro__:
        if cls.__module__.partition(".")[0] in FRAMEWORKS and cls.__name__ in {"Module", "Layer"}:
            return cls.__module__.partition(".")[0]
    raise ArgumentTypeError(
        f"`model` must be a torch.nn.Module or a paddle.nn.Layer; got {type(model).__module__}."
        f"{type(model).__qualname__}"
    )


def named_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The model under "", and all modules in it by their paths."""
    if framework_of(model) == "torch":
        return iter(model.named_modules())
    return iter(model.named_sublayers(include_self=True))


def to_tensor(model: Any, array: np.ndarray) -> Any:
    """``array`` as the model's framework, on its device and in the dtype of its weights."""
    parameter = next(iter(model.parameters()))
    if framework_of(model) == "torch":
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(parameter)
    import paddle

    return paddle.to_tensor(array, place=parameter.place).astype(parameter.dtype)


def to_numpy(array: Any) -> np.ndarray:
    """Any array as NumPy; what NumPy has no type for (bfloat16) as float32."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    if "bfloat16" in str(array.dtype):
        array = array.float() if hasattr(array, "float") else array.astype("float32")
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, put back afterwards."""
    modules = list(model.modules() if framework_of(model) == "torch" else model.sublayers(True))
    modes = [module.training for module in modules]
    if framework_of(model) == "torch":
        import torch

        without_gradients: Any = torch.no_grad()
    else:
        import paddle

        without_gradients = paddle.no_grad()
    model.eval()
    try:
        with without_gradients:
            yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def logits_of(output: Any) -> Any:
    """The tensor in what a model returns: the tensor itself, ``.logits``, or the first of a tuple.

    Raises:
        ArgumentTypeError: none of these is a tensor; a model of transformers without a head for
            classes returns such an object.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if isinstance(found, tuple | list | dict) or not hasattr(found, "shape"):
        raise ArgumentTypeError(
            "`model` must return a tensor, an object with `.logits`, or a tuple that begins with a "
            f"tensor; it returned {type(output).__module__}.{type(output).__qualname__}. Use a model "
            "with a head for classes."
        )
    return found


def predict(model: Any, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Outputs (n, classes) of ``model`` for images (n, C, H, W); which, see :func:`logits_of`."""
    with evaluating(model):
        parts = [
            to_numpy(logits_of(model(to_tensor(model, images[at : at + batch]))))
            for at in range(0, len(images), batch)
        ]
    return np.concatenate(parts)
