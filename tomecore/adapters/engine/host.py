"""Define the operations that the engine needs from a framework; only hosts depend on torch or Paddle."""

from __future__ import annotations

import functools
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType, NoneType
from typing import Any, Literal, Protocol

from tomecore.adapters.engine.spec import Spec
from tomecore.adapters.engine.state import ThreadSlot, TokenState
from tomecore.backends import Array, Backend, Bias, Sizes, Tokens
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Host", "LayerHost", "Projection", "PropAttn", "SharedConfig", "check_prop_attn"]

#: whether attention counts sizes; a name selects the form in which it does
PropAttn = bool | Literal["column"]

#: weight and bias of a linear layer
Projection = tuple[Array, Array | None]


class SharedConfig(Protocol):
    """The parts of a :class:`~tomecore.adapters.engine.config.Config` that hosts use."""

    #: the program of a static graph that is being traced, and the state in it
    traced_state: tuple[Any, TokenState] | None

    @property
    def tower(self) -> Any:
        """The module that owns the list of blocks; None if it was freed."""


class Host(ABC):
    """The operations of one framework that the patch needs. Each host module has one instance, ``HOST``.

    Args:
        module: name of the module that holds it; it is pickled by this name.
        module_class: base class of the framework's modules.
        array_class: class of the framework's arrays.
        wrappers: class names of modules that only wrap another one -> the attribute that holds it.
        forms: names of the forms of proportional attention that a user can choose.
    """

    def __init__(
        self,
        module: str,
        module_class: type,
        array_class: type,
        wrappers: dict[str, str],
        forms: tuple[str, ...] = (),
    ) -> None:
        self.module = module
        self.forms = forms
        self.module_class = module_class
        self.array_class = array_class
        self.wrappers = wrappers
        #: filled by the hooks of :meth:`register_key_hook` while a block attends; None at other times
        self.captured_keys: ThreadSlot[list[tuple[Any, Array]]] = ThreadSlot()
        #: specs of users, tried before tomecore's own
        self.registered: list[Spec] = []
        #: spec for unknown blocks, used if a trial shows that they do what it says; None: refuse them
        self.fallback: Spec | None = None
        #: called with True at the start of a block's forward: a tracer that would simulate the
        #: block then runs it, and everything it calls, without tracing
        self.run_as_is: Callable[[bool], None] = as_is

    def capture_key(self, module: Any, output: Array, tracing: bool) -> None:
        """Store the output of a key module, if a block is attending and needs its keys."""
        captured_keys = self.captured_keys.get(tracing)
        if captured_keys is not None:
            captured_keys.append((module, output))

    @abstractmethod
    def backend(self) -> Backend:
        """Return the backend of the framework's arrays."""

    @abstractmethod
    def named_children(self, module: Any) -> Iterator[tuple[str, Any]]:
        """Return the direct submodules with their names."""

    def child(self, module: Any, name: str) -> Any:
        """Return a direct submodule, or another attribute; None if there is none."""
        return getattr(module, name, None)

    @abstractmethod
    def child_names(self, module: Any) -> tuple[str, ...]:
        """Return the names of the direct submodules, including those that are None."""

    @abstractmethod
    def named_modules(self, module: Any) -> Iterator[tuple[str, Any]]:
        """Return all submodules with their paths, first the module itself under ""."""

    @abstractmethod
    def own_tensors(self, module: Any) -> list[str]:
        """Return the names of the parameters and buffers that the module holds directly."""

    @abstractmethod
    def hooked(self, module: Any) -> bool:
        """Whether a hook is registered for the module's own forward or backward."""

    @abstractmethod
    def hooked_by_user(self, module: Any) -> bool:
        """Whether the module has a hook that belongs neither to tomecore nor to the library."""

    @abstractmethod
    def register_key_hook(self, module: Any) -> Any:
        """Store the module's output in ``captured_keys`` by a hook; returns a handle with ``remove()``."""

    @abstractmethod
    def watch_output(self, module: Any, note: functools.partial[None]) -> None:
        """Register a hook that calls ``note`` (an engine function with its config) with each output."""

    @abstractmethod
    def is_listened_to(self, module: Any, config: SharedConfig) -> bool:
        """Whether the patch of ``config`` has registered :meth:`watch_output` on the module."""

    @abstractmethod
    def unhook(self, module: Any) -> None:
        """Remove the hooks of :meth:`register_key_hook` and :meth:`watch_output` from the module."""

    @abstractmethod
    def tracing(self) -> bool:
        """Whether a graph is being traced, instead of values being computed."""

    @abstractmethod
    def write(self, config: SharedConfig, x: Tokens, state: TokenState, tracing: bool) -> None:
        """Attach ``state`` to ``x``."""

    @abstractmethod
    def read(self, config: SharedConfig, x: Tokens, tracing: bool) -> TokenState | None:
        """Return the state that is attached to ``x`` for ``config``; None if there is none."""

    @abstractmethod
    def keep(self, config: SharedConfig, x: Tokens, name: str, value: Any) -> None:
        """Attach ``value`` to ``x``, which enters a forward pass, under ``name`` for the recomputation."""

    @abstractmethod
    def recall(self, config: SharedConfig, x: Tokens, name: str) -> Any:
        """Return what :meth:`keep` attached to ``x``, or to the tensor it was copied from; else None."""

    #: modules of the framework whose functions run a region that is recomputed in backward
    checkpoints: tuple[str, ...] = ()
    #: class of the first argument of custom differentiable functions, which may recompute
    context_class: type = NoneType

    def in_checkpoint(self, function: str = "forward") -> bool:
        """Whether this thread runs a region that is recomputed, or will be; read from the stack.

        Args:
            function: the method of a custom differentiable function that runs the region: "forward" or
                "backward".
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if frame.f_globals.get("__name__") in self.checkpoints:
                return True
            if code.co_name == function and code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                if isinstance(first, self.context_class):
                    return True
            frame = frame.f_back
        return False

    def convert_for_graph(self, function: Any) -> Any:
        """Return ``function`` in the form that tracing a graph needs."""
        return function

    def symbolic(self, x: Any) -> bool:
        """Whether ``x`` is not an array but a proxy of a tracer that cannot trace a merging block."""
        return False

    def watch_bias(self, bias: Bias) -> tuple[Bias, Callable[[], bool]] | None:
        """Return the bias and a function that reports its use; None if its use cannot be observed."""
        return None

    @abstractmethod
    def recomputing(self) -> bool:
        """Whether a backward pass is running in this thread."""

    @abstractmethod
    def log_sizes(self, sizes: Sizes, x: Tokens) -> Bias:
        """Return the bias (B, 1, 1, n) of proportional attention for ``x``, in the dtype of ``x``."""

    def bias_dtype(self, x: Tokens) -> Any:
        """Return the dtype that a bias from fused kernels has, if it fits the queries of tokens ``x``."""
        return x.dtype

    def with_prop_attn_form(self, bias: Bias, x: Tokens, prop_attn: PropAttn = True) -> Bias:
        """Return the bias in the type that selects the form of attention: ``prop_attn``, or the fastest."""
        return bias

    @abstractmethod
    def attention(
        self, q: Array, k: Array, v: Array, bias: Array | None, *, dropout: float, scale: float
    ) -> Array:
        """Compute the framework's fused attention: (B, N, H, D) -> (B, N, H, D)."""

    @abstractmethod
    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """Apply a linear layer; ``weight`` is in the framework's own layout."""

    @abstractmethod
    def split_query_projection(self, module: Any) -> tuple[Projection, Projection] | None:
        """Split a layer that projects to queries, keys and values into the queries and the rest.

        Returns:
            Two pairs of weight and bias, for :meth:`linear`. None if calling the module may do more than a
            projection: it has another class (adapters, quantised layers), a hook, or a weight that is not a
            plain tensor.
        """

    @abstractmethod
    def ones(self, shape: tuple[int, int], device: Any) -> Array:
        """Return float32 ones on ``device``."""

    @abstractmethod
    def double(self, module: Any) -> Any:
        """Convert the parameters of the module to float64, and return the module."""

    @abstractmethod
    def device(self, module: Any) -> Any:
        """Return the device of the module's parameters; None if it has none."""

    @abstractmethod
    def to_numpy(self, x: Array) -> Any:
        """Convert ``x`` to a NumPy array, without gradients."""

    @abstractmethod
    def seed_random(self, number: int) -> AbstractContextManager[None]:
        """Use this random seed within the context, and restore the random state afterwards."""

    def wraps(self, module: Any) -> bool:
        """Whether ``module`` only wraps another one, such as a compiled or sharded module."""
        return any(cls.__qualname__ in self.wrappers for cls in type(module).__mro__)

    def drop_traces(self, model: Any) -> None:  # noqa: B027
        """Drop graphs that were traced with the old settings; called when the settings change."""

    def forget(self, module: Any) -> None:  # noqa: B027
        """Drop what the framework keeps of the module elsewhere; called for each unpatched module."""

    def __reduce__(self) -> tuple[Callable[[str], Host], tuple[str]]:
        return host_of, (self.module,)


class LayerHost(Host):
    """The operations that the families of Paddle need too, because attention there accepts no bias."""

    @abstractmethod
    def call_shape_hooks(self, module: Any, x: Tokens) -> None:
        """Call the hooks that only read shapes, of a module that a half bypasses; ``x`` is its output."""

    @abstractmethod
    def attention_through(
        self, dropout: Any, q: Array, k: Array, v: Array, bias: Array | None, *, scale: float
    ) -> Array:
        """Compute attention without a fused kernel, and apply ``dropout``, a module, to the weights."""

    @abstractmethod
    def dropout_rate(self, module: Any) -> float | None:
        """Return the rate of a plain dropout, 0 in eval mode; None if calling the module may do more."""


def as_is(recursive: bool) -> None:
    """Do nothing: this framework's tracers need no instruction."""


def host_of(module: str) -> Host:
    """Return the host of a host module; used to unpickle it."""
    host: Host = importlib.import_module(module).HOST
    return host


def check_prop_attn(host: Host, prop_attn: Any) -> None:
    """Raise unless ``prop_attn`` is a bool, None, or the name of a form that this framework has."""
    if prop_attn is None or isinstance(prop_attn, bool) or prop_attn in host.forms:
        return
    named = "".join(f" or {form!r}" for form in host.forms)
    message = f"`prop_attn` must be True, False{named}, or None for the family's default; got {prop_attn!r}"
    if not isinstance(prop_attn, str):
        raise ArgumentTypeError(message)
    if not host.forms:
        message += (
            ". Forms can be chosen only in PyTorch; in this framework True uses the fastest one"
        )
    raise ArgumentValueError(message)
