"""What an adapter needs of a framework: the only place where torch and Paddle differ."""

from __future__ import annotations

import functools
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType, NoneType
from typing import Any, Literal

from tomecore.adapters.engine.spec import Spec
from tomecore.adapters.engine.state import Run, ThreadSlot
from tomecore.backends import Array, Backend
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Host", "Projection", "PropAttn", "check_prop_attn"]

#: whether attention counts sizes; by name: in this form
PropAttn = bool | Literal["column"]

#: weight and bias of a linear layer
Projection = tuple[Array, Array | None]


class Host(ABC):
    """A framework as the patch sees it. One instance per adapter module, named ``HOST`` there.

    Args:
        module: the adapter module that holds it; it pickles as that name.
        module_class: base class of the framework's modules.
        array_class: class of the framework's arrays.
        wrappers: class names, as in ``Spec.blocks``, of modules that only wrap another -> the
            attribute that holds the inner one.
        forms: of proportional attention, that can be asked for by name.
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
        #: while a block attends and its keys are wanted: the list that the hook of :meth:`tap` fills
        self.taps = ThreadSlot()
        #: specs of users, asked before tomecore's own
        self.registered: list[Spec] = []
        #: for blocks that no spec knows, where they prove to do what this one says; None: refuse
        self.fallback: Spec | None = None
        #: called with True at the start of a block's forward; a tracer that would simulate the block
        #: may take it as the order to run the block, and all it calls, as it is
        self.run_as_is: Callable[[bool], None] = as_is

    def tapped(self, module: Any, output: Array, tracing: bool) -> None:
        """Called by the hook of :meth:`tap`; keeps nothing unless somebody waits for a key."""
        taps = self.taps.get(tracing)
        if taps is not None:
            taps.append((module, output))

    @abstractmethod
    def backend(self) -> Backend:
        """The backend of the framework's arrays."""

    @abstractmethod
    def named_children(self, module: Any) -> Iterator[tuple[str, Any]]:
        """Direct submodules by name."""

    def child(self, module: Any, name: str) -> Any:
        """A direct submodule, or another attribute; None if there is none."""
        return getattr(module, name, None)

    @abstractmethod
    def child_names(self, module: Any) -> tuple[str, ...]:
        """Names of the direct submodules, those that are None too."""

    @abstractmethod
    def named_modules(self, module: Any) -> Iterator[tuple[str, Any]]:
        """All submodules by path, itself first under ""."""

    @abstractmethod
    def own_tensors(self, module: Any) -> list[str]:
        """Names of the parameters and buffers the module holds itself."""

    @abstractmethod
    def hooked(self, module: Any) -> bool:
        """Whether a hook waits for the module's own forward, or for its backward."""

    @abstractmethod
    def hooked_by_user(self, module: Any) -> bool:
        """Whether somebody else than tomecore, or the library itself, hooked the module."""

    @abstractmethod
    def tap(self, module: Any) -> Any:
        """Have the module's output put into ``taps``; returns a handle with ``remove()``."""

    @abstractmethod
    def watch_output(self, module: Any, note: functools.partial[None]) -> None:
        """Call ``note``, a function of the engine and its config, with each output of the module."""

    @abstractmethod
    def listened(self, module: Any, config: Any) -> bool:
        """Whether the patch of ``config`` listens to the module by :meth:`watch_output`."""

    @abstractmethod
    def unhook(self, module: Any) -> None:
        """Remove the hooks of :meth:`tap` and :meth:`watch_output` from the module."""

    @abstractmethod
    def tracing(self) -> bool:
        """Whether this call builds a graph instead of computing."""

    @abstractmethod
    def write(self, config: Any, x: Array, run: Run, tracing: bool) -> None:
        """Let ``run`` ride on ``x``."""

    @abstractmethod
    def read(self, config: Any, x: Array, tracing: bool) -> Run | None:
        """The run that rides on ``x``."""

    @abstractmethod
    def keep(self, config: Any, x: Array, name: str, value: Any) -> None:
        """Let ``x``, which enters a forward pass, keep ``value`` under ``name`` for its recomputation."""

    @abstractmethod
    def kept(self, config: Any, x: Array, name: str) -> Any:
        """What ``x``, or the tensor that a checkpoint made it from, kept under ``name``; None if nothing."""

    #: modules of the framework whose functions run a region that will be computed again
    checkpoints: tuple[str, ...] = ()
    #: what a differentiable function of the user gets as its first argument; such functions may recompute
    context_class: type = NoneType

    def in_checkpoint(self, function: str = "forward") -> bool:
        """Whether this thread runs a region that is, or will be, computed again; read from the stack.

        Args:
            function: name of the method of a differentiable function that runs the region: "forward" or
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

    def converted(self, function: Any) -> Any:
        """``function`` as a graph that is being built needs it."""
        return function

    def symbolic(self, x: Any) -> bool:
        """Whether ``x`` is no array but a stand-in of a tracer that cannot follow a merging block."""
        return False

    def watched_bias(self, bias: Array) -> tuple[Array, Callable[[], bool]] | None:
        """The bias, and whether it was computed with by now; None where that cannot be seen."""
        return None

    @abstractmethod
    def recomputing(self) -> bool:
        """Whether a backward pass is running in this thread."""

    @abstractmethod
    def log_sizes(self, sizes: Array, x: Array) -> Array:
        """Bias (B, 1, 1, n) of proportional attention for the activations ``x``, in their dtype."""

    def formed(self, bias: Array, x: Array, prop_attn: PropAttn = True) -> Array:
        """The bias, if need be so that the attention of ``x`` takes the form asked for, or fastest here."""
        return bias

    @abstractmethod
    def attention(
        self, q: Array, k: Array, v: Array, bias: Array | None, *, dropout: float, scale: float
    ) -> Array:
        """The framework's fused attention on (B, N, H, D), returning (B, N, H, D)."""

    @abstractmethod
    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """What the framework's linear layer makes of ``x`` with this weight, in its own layout."""

    @abstractmethod
    def queries_apart(self, module: Any) -> tuple[Projection, Projection] | None:
        """Of a layer that projects to queries, keys and values at once: the queries, and the others.

        Each as weight and bias, for :meth:`linear`. None where calling the module does more than that, or
        may: another class (adapters, quantised layers), a hook, a weight that is no plain tensor.
        """

    @abstractmethod
    def ones(self, shape: tuple[int, int], device: Any) -> Array:
        """Float32 ones on ``device``."""

    @abstractmethod
    def double(self, module: Any) -> Any:
        """The module, its parameters turned to float64."""

    @abstractmethod
    def device(self, module: Any) -> Any:
        """Where the module's parameters are; None if it has none."""

    @abstractmethod
    def numbers(self, x: Array) -> Any:
        """A NumPy array of ``x``, without gradients."""

    @abstractmethod
    def seeded(self, number: int) -> AbstractContextManager[None]:
        """Draw random numbers from this seed, and afterwards go on as before."""

    def wraps(self, module: Any) -> bool:
        """Whether ``module`` only wraps another one, compiled or sharded."""
        return any(cls.__qualname__ in self.wrappers for cls in type(module).__mro__)

    def changed(self, model: Any) -> None:  # noqa: B027
        """Called when settings of a patched model changed, for graphs of it that know the old ones."""

    def released(self, module: Any) -> None:  # noqa: B027
        """Called for each module that was unpatched, for what the framework keeps of it elsewhere."""

    def __reduce__(self) -> tuple[Callable[[str], Host], tuple[str]]:
        return host_of, (self.module,)


def as_is(recursive: bool) -> None:
    """Nothing: this framework's tracers take a block as it is."""


def host_of(module: str) -> Host:
    """The host of an adapter module."""
    host: Host = importlib.import_module(module).HOST
    return host


def check_prop_attn(host: Host, prop_attn: Any) -> None:
    """Raise unless proportional attention is on, off, left to the family or a form of this framework."""
    if prop_attn is None or isinstance(prop_attn, bool) or prop_attn in host.forms:
        return
    named = "".join(f" or {form!r}" for form in host.forms)
    message = f"`prop_attn` must be True, False{named}, or None for the family's default; got {prop_attn!r}"
    if not isinstance(prop_attn, str):
        raise ArgumentTypeError(message)
    if not host.forms:
        message += ". Forms have names in PyTorch; in this framework True takes the fastest one"
    raise ArgumentValueError(message)
