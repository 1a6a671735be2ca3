"""PyTorch and Paddle with the same methods, for the tools: modules, tensors, devices, processes.

    predict(model, images)               # NumPy in, NumPy out, in any framework
    runtime_of(model).forget_gradients(model)

The engine needs more of a framework; that is in ``adapters/hosts``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tomecore._project import install_hint
from tomecore.errors import ArgumentTypeError, MissingLibraryError, TomeError

__all__ = [
    "FRAMEWORKS",
    "RUNTIMES",
    "Paddle",
    "Runtime",
    "Torch",
    "evaluating",
    "framework_of",
    "logits_of",
    "named_modules",
    "predict",
    "require",
    "runtime_of",
    "stacked",
    "to_numpy",
    "to_tensor",
]


class Torch:
    """The parts of PyTorch that the tools need. It is imported only when a method needs it."""

    name = "torch"
    #: the command that installs it
    install = install_hint("torch")
    #: the layout of its plain ViTs' weights, by its name in ``tomecore.models.convert``
    layout = "timm"
    #: its name for a GPU, and examples of its devices
    gpu, devices = "cuda", "cpu, cuda, cuda:1 ..."
    #: the command that starts several processes, and the variables it sets in each: how many there are,
    #: which one this is, and which one on its machine
    launcher = "torchrun"
    variables = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    #: the function of :attr:`cuda` that resets its ``max_memory_allocated``
    reset_peak = "reset_peak_memory_stats"

    @property
    def library(self) -> Any:
        """The package itself."""
        return importlib.import_module("torch")

    @property
    def cuda(self) -> Any:
        """The module that counts, synchronizes and measures GPUs."""
        return self.library.cuda

    def named_modules(self, model: Any) -> Any:
        """Return the model under "", and all modules in it by their paths."""
        return model.named_modules()

    def after_forward(self, module: Any, hook: Callable[[Any, Any, Any], Any]) -> Any:
        """Call ``hook(module, inputs, output)`` after each forward; the result has ``remove()``."""
        return module.register_forward_hook(hook)

    def no_grad(self) -> Any:
        """Return a context manager that disables gradients."""
        return self.library.no_grad()

    def fastest(self) -> Any:
        """Return the context manager that disables gradients at the lowest cost, for timing."""
        return self.library.inference_mode()

    def forget_gradients(self, model: Any) -> None:
        """Free the gradients of all parameters."""
        model.zero_grad(set_to_none=True)

    def device_of(self, tensor: Any) -> Any:
        """Return the device of a tensor."""
        return tensor.device

    def tensor(self, array: np.ndarray, device: Any, dtype: Any) -> Any:
        """Return ``array`` as a tensor; device and dtype are names, or taken from another tensor."""
        dtype = getattr(self.library, dtype) if isinstance(dtype, str) else dtype
        return self.library.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    def to_float32(self, tensor: Any) -> Any:
        """Return ``tensor`` in float32, with its gradient."""
        return tensor.float()

    def load_state(self, model: Any, weights: Mapping[str, np.ndarray]) -> None:
        """Load every weight of ``model``, each in the dtype that it has in the model."""
        model.load_state_dict({n: self.library.from_numpy(np.array(v)) for n, v in weights.items()})

    def move(self, model: Any, device: str, dtype: str | None = None) -> Any:
        """Move the model to a device, which becomes the current one, and a dtype; in place; return it."""
        if device.startswith("cuda:"):
            self.cuda.set_device(device)
        return model.to(device=device, dtype=dtype and getattr(self.library, dtype))

    def set_threads(self, count: int) -> None:
        """Set the number of threads on a CPU, whatever the environment said at the import."""
        self.library.set_num_threads(count)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[Callable[[Any], list[Any]]]:
        """Yield ``gather(value)``, which returns the values of all processes, by rank.

        An existing process group is used and kept; one that is set up here is destroyed.
        """
        distributed = importlib.import_module("torch.distributed")
        ours = not distributed.is_initialized()
        if ours:
            distributed.init_process_group("gloo")
        # Gather on the CPU, wherever the models run.
        on_cpu = distributed.get_backend() == "gloo"
        group = None if on_cpu else distributed.new_group(backend="gloo")

        def gather(value: Any) -> list[Any]:
            found: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(found, value, group=group)
            return found

        try:
            yield gather
        finally:
            if ours:
                distributed.destroy_process_group()


class Paddle:
    """The parts of Paddle that the tools need, with the names of :class:`Torch`, which explains them."""

    name = "paddle"
    install = install_hint("paddle-cpu")
    layout = "plsc"
    gpu, devices = "gpu", "cpu, gpu, gpu:1 ..."
    launcher = "python -m paddle.distributed.launch"
    variables = ("PADDLE_TRAINERS_NUM", "PADDLE_TRAINER_ID", "PADDLE_LOCAL_RANK")
    reset_peak = "reset_max_memory_allocated"

    @property
    def library(self) -> Any:
        return importlib.import_module("paddle")

    @property
    def cuda(self) -> Any:
        return self.library.device.cuda

    def named_modules(self, model: Any) -> Any:
        return model.named_sublayers(include_self=True)

    def after_forward(self, module: Any, hook: Callable[[Any, Any, Any], Any]) -> Any:
        return module.register_forward_post_hook(hook)

    def no_grad(self) -> Any:
        return self.library.no_grad()

    fastest = no_grad

    def forget_gradients(self, model: Any) -> None:
        model.clear_gradients(set_to_zero=False)

    def device_of(self, tensor: Any) -> Any:
        return tensor.place

    def tensor(self, array: np.ndarray, device: Any, dtype: Any) -> Any:
        return self.library.to_tensor(array, place=device).astype(dtype)

    def to_float32(self, tensor: Any) -> Any:
        return tensor.astype("float32")

    def load_state(self, model: Any, weights: Mapping[str, np.ndarray]) -> None:
        dtype = {name: value.dtype for name, value in model.state_dict().items()}
        missing, unexpected = model.set_state_dict(
            {n: self.library.to_tensor(v).astype(dtype[n]) for n, v in weights.items()}
        )
        if missing or unexpected:
            raise TomeError(f"Paddle did not take the weights {[*missing, *unexpected]}")

    def move(self, model: Any, device: str, dtype: str | None = None) -> Any:
        self.library.set_device(device)
        return model.to(device=device, dtype=dtype)

    def set_threads(self, count: int) -> None:
        """Do nothing: Paddle reads the environment variables only."""

    @contextlib.contextmanager
    def gathering(self) -> Iterator[Callable[[Any], list[Any]]]:
        distributed = importlib.import_module("paddle.distributed")
        if not distributed.is_initialized():
            distributed.init_parallel_env()

        def gather(value: Any) -> list[Any]:
            found: list[Any] = []
            distributed.all_gather_object(found, value)
            return found

        yield gather


#: A type checker ensures that both have everything that the tools use.
Runtime = Torch | Paddle

#: name -> framework
RUNTIMES: dict[str, Runtime] = {"torch": Torch(), "paddle": Paddle()}

#: framework -> the command that installs it
FRAMEWORKS = {name: runtime.install for name, runtime in RUNTIMES.items()}


def require(framework: str) -> None:
    """Raise if a framework is missing, with the command that installs it."""
    if importlib.util.find_spec(framework) is None:
        raise MissingLibraryError(
            f"{framework} is not installed; install it with: {FRAMEWORKS[framework]}"
        )


def framework_of(model: Any) -> str:
    """Return "torch" or "paddle", by the classes that the model derives from."""
    for cls in type(model).__mro__:
        if cls.__module__.partition(".")[0] in FRAMEWORKS and cls.__name__ in {"Module", "Layer"}:
            return cls.__module__.partition(".")[0]
    raise ArgumentTypeError(
        f"`model` must be a torch.nn.Module or a paddle.nn.Layer; got {type(model).__module__}."
        f"{type(model).__qualname__}"
    )


def runtime_of(model: Any) -> Runtime:
    """Return the :class:`Torch` or :class:`Paddle` of a model."""
    return RUNTIMES[framework_of(model)]


def named_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Return the model under "", and all modules in it by their paths."""
    return iter(runtime_of(model).named_modules(model))


def to_tensor(model: Any, array: np.ndarray) -> Any:
    """Return ``array`` as a tensor of the model's framework, with the device and dtype of its weights."""
    runtime, parameter = runtime_of(model), next(iter(model.parameters()))
    return runtime.tensor(array, runtime.device_of(parameter), parameter.dtype)


def stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays (C, H, W) as one array (B, C, H, W)."""
    return np.stack(images)


def to_numpy(array: Any) -> np.ndarray:
    """Return any array as NumPy; bfloat16, for which NumPy has no type, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    if "bfloat16" in str(array.dtype):
        array = array.float() if hasattr(array, "float") else array.astype("float32")
    return np.asarray(array.numpy() if hasattr(array, "numpy") else array)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients; restore its modes afterwards."""
    runtime = runtime_of(model)
    modes = [(module, module.training) for _, module in runtime.named_modules(model)]
    model.eval()
    try:
        with runtime.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def logits_of(output: Any) -> Any:
    """Return the tensor in a model's output: the output itself, its ``.logits``, or the first of a tuple.

    Raises:
        ArgumentTypeError: none of these is a tensor, as for a model of transformers without a head for
            classes.
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
    """Return the outputs (n, classes) of ``model`` for images (n, C, H, W), by :func:`logits_of`."""
    with evaluating(model):
        parts = [
            to_numpy(logits_of(model(to_tensor(model, images[at : at + batch]))))
            for at in range(0, len(images), batch)
        ]
    return np.concatenate(parts)
