"""The framework functions that the adapter tests need, so that one law can be written for all frameworks.

Arrays become numpy here: a law compares numbers, and only these few lines know the framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
import torch
from paddle.distributed.fleet.utils import recompute
from torch.utils.checkpoint import checkpoint

import tomecore.adapters.paddle
import tomecore.adapters.torch

__all__ = ["PADDLE", "TORCH", "Framework", "handed_on", "random_parameter"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_post_hooks")


def handed_on(output: Any) -> Any:
    """The tokens in what a block returned, which may be a tuple."""
    return output[0] if isinstance(output, tuple) else output


def random_parameter(
    name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """Values that make every part of a block matter: no zero bias, no neutral norm or LayerScale."""
    noise = generator.standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "gamma":
        return 0.5 + 0.3 * noise
    if len(shape) == 1:
        return 1 + 0.3 * noise if last == "weight" else 0.3 * noise
    return 0.5 * noise if "token" in name or "embed" in last else 0.2 * noise


def check_one(x: Any, cls: type) -> None:
    """Raise unless ``x`` is one tensor."""
    if not isinstance(x, cls):
        raise TypeError(
            f"a law reads one tensor; got a {type(x).__name__}. If the model of a case returns that, "
            "let `build` wrap it in a module that returns one tensor, and set Case(layers=) to the path of "
            "its blocks"
        )


class Framework:
    """Common part of :data:`TORCH` and :data:`PADDLE`."""

    name: str
    tome: Any
    # of each of the two
    tensor: Callable[..., Any]
    numpy: Callable[..., Any]
    double: Callable[..., Any]
    single: Callable[..., Any]
    assign: Callable[..., None]
    clear_gradients: Callable[..., None]
    pre_hook: Callable[..., Any]
    post_hook: Callable[..., Any]

    def modules(self, model: Any) -> dict[str, Any]:
        return dict(self.tome.HOST.named_modules(model))

    def fingerprint(self, model: Any) -> dict[str, Any]:
        """Return everything that apply_patch may change and remove_patch must restore, down to identities."""
        return {
            path: (
                type(module),
                sorted(vars(module)),
                [list(vars(module)[name].values()) for name in _HOOKS if name in vars(module)],
            )
            for path, module in self.modules(model).items()
        } | {"parameters": [(n, id(p)) for n, p in model.named_parameters()]}

    def prepare(self, model: Any, seed: int = 0) -> Any:
        """Float64, random everywhere, in evaluation mode."""
        generator = np.random.default_rng(seed)
        model = self.double(model)
        for name, parameter in model.named_parameters():
            self.assign(parameter, random_parameter(name, tuple(parameter.shape), generator))
        model.eval()
        return model

    def forward(self, model: Any, images: np.ndarray) -> np.ndarray:
        """The output of the model, without gradients in the way."""
        return self.numpy(model(self.tensor(images)))

    def gradients(self, model: Any, loss: Callable[[], Any]) -> dict[str, np.ndarray]:
        """Gradients of ``loss()`` by parameter name."""
        return self.gradients_of(model, loss())

    def gradients_of(self, model: Any, loss: Any) -> dict[str, np.ndarray]:
        self.clear_gradients(model)
        loss.backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {name: self.numpy(gradient).copy() for name, gradient in named.items()}

    def tokens(self, model: Any, images: np.ndarray, block: Any = None) -> Any:
        """The tensor that would enter the first block, with its graph."""
        caught: list[Any] = []

        def catch(module: Any, args: tuple[Any, ...]) -> None:
            caught.append(args[0])
            raise Caught

        hook = self.pre_hook(model.blocks[0] if block is None else block, catch)
        try:
            model(self.tensor(images))
        except Caught:
            pass
        finally:
            hook.remove()
        return caught[0]


class Caught(Exception):
    """Ends a forward pass at the first block."""


class Torch(Framework):
    name = "torch"
    tome = tomecore.adapters.torch

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    def numpy(self, x: torch.Tensor) -> np.ndarray:
        check_one(x, torch.Tensor)
        return x.detach().cpu().numpy()

    def double(self, model: Any) -> Any:
        return model.double()

    def single(self, model: Any) -> Any:
        return model.float()

    def require_gradient(self, x: torch.Tensor) -> None:
        x.requires_grad_()

    def container(self, **children: Any) -> Any:
        """A module that holds others and does nothing itself."""
        outer = torch.nn.Module()
        for name, child in children.items():
            setattr(outer, name, child)
        return outer

    def assign(self, parameter: torch.Tensor, values: np.ndarray) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.asarray(values)))

    def load(self, model: Any, weights: dict[str, np.ndarray]) -> None:
        model.load_state_dict({name: self.tensor(array) for name, array in weights.items()})

    def clear_gradients(self, model: Any) -> None:
        model.zero_grad()

    def pre_hook(self, module: Any, hook: Callable[..., Any], *, with_kwargs: bool = False) -> Any:
        return module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)

    def post_hook(self, module: Any, hook: Callable[..., Any]) -> Any:
        return module.register_forward_hook(hook)

    def checkpoint(self, function: Callable[..., Any], x: Any, *, reentrant: bool) -> Any:
        return checkpoint(function, x, use_reentrant=reentrant)

    def seed(self, number: int) -> None:
        torch.manual_seed(number)

    def sgd(self, model: Any, rate: float) -> Any:
        return torch.optim.SGD(model.parameters(), lr=rate)

    def linear(self, inputs: int, outputs: int) -> Any:
        return torch.nn.Linear(inputs, outputs)

    def parameter(self) -> Any:
        return torch.nn.Parameter(torch.ones(32))

    def sequential(self, *children: Any) -> Any:
        return torch.nn.Sequential(*children)

    def listed(self, blocks: list[Any]) -> tuple[Any, ...]:
        """Arguments of the class that holds the blocks: a Sequential."""
        return tuple(blocks)


class Paddle(Framework):
    name = "paddle"
    tome = tomecore.adapters.paddle

    def tensor(self, array: np.ndarray) -> paddle.Tensor:
        return paddle.to_tensor(np.array(array))

    def numpy(self, x: paddle.Tensor) -> np.ndarray:
        check_one(x, paddle.Tensor)
        return x.detach().numpy()

    def double(self, model: Any) -> Any:
        return floats_to(model, "float64")

    def single(self, model: Any) -> Any:
        return floats_to(model, "float32")

    def require_gradient(self, x: paddle.Tensor) -> None:
        x.stop_gradient = False

    def container(self, **children: Any) -> Any:
        outer = paddle.nn.Layer()
        for name, child in children.items():
            setattr(outer, name, child)
        return outer

    def assign(self, parameter: paddle.Tensor, values: np.ndarray) -> None:
        parameter.set_value(paddle.to_tensor(np.asarray(values)).astype(parameter.dtype))

    def load(self, model: Any, weights: dict[str, np.ndarray]) -> None:
        assert weights.keys() == model.state_dict().keys()
        model.set_state_dict({name: self.tensor(array) for name, array in weights.items()})

    def clear_gradients(self, model: Any) -> None:
        model.clear_gradients(set_to_zero=False)

    def pre_hook(self, module: Any, hook: Callable[..., Any], *, with_kwargs: bool = False) -> Any:
        return module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)

    def post_hook(self, module: Any, hook: Callable[..., Any]) -> Any:
        return module.register_forward_post_hook(hook)

    def checkpoint(self, function: Callable[..., Any], x: Any, *, reentrant: bool) -> Any:
        return recompute(function, x, use_reentrant=reentrant)

    def seed(self, number: int) -> None:
        paddle.seed(number)

    def sgd(self, model: Any, rate: float) -> Any:
        return paddle.optimizer.SGD(rate, parameters=model.parameters())

    def linear(self, inputs: int, outputs: int) -> Any:
        return paddle.nn.Linear(inputs, outputs)

    def parameter(self) -> Any:
        return paddle.create_parameter([32], "float32")

    def sequential(self, *children: Any) -> Any:
        return paddle.nn.Sequential(*children)

    def listed(self, blocks: list[Any]) -> tuple[Any, ...]:
        """Arguments of the class that holds the blocks: a LayerList."""
        return (blocks,)


def floats_to(model: Any, dtype: str) -> Any:
    """Cast a Paddle model as ``model.to(dtype=dtype)``, which would cast integer buffers as well."""
    kept = [
        (layer, name, buffer.clone())
        for layer in model.sublayers(include_self=True)
        for name, buffer in layer._buffers.items()
        if buffer is not None and not paddle.is_floating_point(buffer)
    ]
    model.to(dtype=dtype)
    for layer, name, buffer in kept:
        setattr(layer, name, buffer)
    return model


TORCH = Torch()
PADDLE = Paddle()
