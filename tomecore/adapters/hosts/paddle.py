"""Implement the host for Paddle: its layers and hooks, and how state is attached to an activation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import nn
from paddle.jit.sot import psdb

from tomecore.adapters.engine import (
    calls,
    checks,
    config,
    contract,
    modules,
    prefix,
    progress,
    recompute,
    schedules,
)
from tomecore.adapters.engine.host import LayerHost, Projection, SharedConfig
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.hosts.paddle_attention import FORMS, form_of, with_products
from tomecore.adapters.hosts.paddle_programs import drop_others, drop_own, noted, watch_exports
from tomecore.adapters.hosts.paddle_state import attach, attached_to
from tomecore.backends import Array, Backend, Bias, Sizes, Tokens
from tomecore.backends.paddle import BACKEND

__all__ = ["HOST", "PaddleHost"]

_WRAPPERS = {"DataParallel": "_layers", "PipelineParallel": "_layers", "TensorParallel": "_layers"}


class PaddleHost(LayerHost):
    """The operations of Paddle that the patch needs.

    A state is an attribute of the activation, and of the copies that recomputation creates. In a static
    graph values have no attributes, but only one thread traces, so there the state is kept in the config.

    SOT (``to_static`` with ``full_graph=False``, the default) simulates Python frame by frame, and does not
    support all of it; its values have no attributes either. So patched blocks run without SOT, which
    compiles only the code around them.
    """

    checkpoints = (
        "paddle.distributed.fleet.recompute.recompute",
        "paddle.distributed.fleet.recompute.recompute_hybrid",
    )
    context_class = paddle.autograd.PyLayerContext

    def __init__(
        self, module: str, module_class: type, array_class: type, wrappers: dict[str, str]
    ) -> None:
        super().__init__(module, module_class, array_class, wrappers)
        self.run_as_is = psdb.fallback  # not public; tests pin its behaviour

    def backend(self) -> Backend:
        return BACKEND

    def named_children(self, module: nn.Layer) -> Iterator[tuple[str, nn.Layer]]:
        return iter(module.named_children())

    def child_names(self, module: nn.Layer) -> tuple[str, ...]:
        return tuple(module._sub_layers)

    def named_modules(self, module: nn.Layer) -> Iterator[tuple[str, nn.Layer]]:
        return iter(module.named_sublayers(include_self=True))

    def own_tensors(self, module: nn.Layer) -> list[str]:
        return [*module._parameters, *module._buffers]

    def hooked(self, module: nn.Layer) -> bool:
        """Whether the module has hooks, except those that only read shapes (:meth:`call_shape_hooks`)."""
        return any(not looks_only(hook) for hook in hooks_of(module))

    @paddle.jit.not_to_static
    def call_shape_hooks(self, module: nn.Layer, x: Tokens) -> None:
        """Call the hooks that only read shapes, as in ``paddle.summary``, of a module that a half bypasses.

        Args:
            module: the attention whose forward was bypassed.
            x: (B, n, C) or (B, rows, C), with the shape of its output.
        """
        for hook in hooks_of(module):
            if looks_only(hook):
                hook(module, (x,), x)

    def hooked_by_user(self, module: nn.Layer) -> bool:
        hooks = (*module._forward_post_hooks.values(), *module._forward_pre_hooks.values())
        return any(not _is_ours(hook) for hook in hooks)

    def register_key_hook(self, module: nn.Layer) -> Any:
        return module.register_forward_post_hook(_key_hook)

    def is_listened_to(self, module: nn.Layer, config: SharedConfig) -> bool:
        hooks = module._forward_post_hooks.values()
        return any(isinstance(hook, _Noting) and config in hook.note.args for hook in hooks)

    def unhook(self, module: nn.Layer) -> None:
        hooks = module._forward_post_hooks
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]

    def watch_output(self, module: nn.Layer, note: functools.partial[None]) -> None:
        module.register_forward_post_hook(_Noting(note))  # type: ignore[arg-type]

    def tracing(self) -> bool:
        return not paddle.in_dynamic_mode()

    def recomputing(self) -> bool:
        """Whether this thread runs a backward pass, by the stack: a nested pass clears Paddle's own flag."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name in {"backward", "grad"} and str(
                frame.f_globals.get("__name__")
            ).startswith("paddle."):
                return self.in_checkpoint("backward")  # a hook may start a forward pass of its own
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def write(self, config: SharedConfig, x: Tokens, state: TokenState, tracing: bool) -> None:
        if tracing:
            noted(config.tower)
            config.traced_state = paddle.static.default_main_program(), state
        else:
            attach(x, "_tome_state", config, state)

    def read(self, config: SharedConfig, x: Tokens, tracing: bool) -> TokenState | None:
        if tracing:
            parked: Any = config.traced_state
            config.traced_state = None
            here = parked is not None and parked[0] is paddle.static.default_main_program()
            return parked[1] if here else None  # values of one program are invalid in another
        state: TokenState | None = attached_to(x, "_tome_state", config)
        if state is not None and not paddle.is_grad_enabled():
            attach(
                x, "_tome_state", config, state
            )  # again: without gradients, this wraps detach too
        return state

    def keep(self, config: SharedConfig, x: Tokens, name: str, value: Any) -> None:
        attach(x, name, config, value)

    def recall(self, config: SharedConfig, x: Tokens, name: str) -> Any:
        return attached_to(x, name, config)

    def log_sizes(self, sizes: Sizes, x: Tokens) -> Bias:
        wide = paddle.float64 if x.dtype == paddle.float64 else paddle.float32
        # "* 1.0": the log of the default CPU predictor (oneDNN) overwrites its input.
        return paddle.log(sizes.astype(wide) * 1.0).astype(x.dtype).unsqueeze([1, 2])

    def attention(
        self, q: Array, k: Array, v: Array, bias: Array | None, *, dropout: float, scale: float
    ) -> Array:
        # A look-up instead of a branch: static graphs would convert a branch, and trace all of its sides.
        form = FORMS[form_of(q, bias, dropout)]
        return form(q, k, v, bias, dropout, scale)

    def attention_through(
        self, dropout: Any, q: Array, k: Array, v: Array, bias: Array | None, *, scale: float
    ) -> Array:
        """Compute attention without a fused kernel, and apply ``dropout``, a module, to the weights."""
        return with_products(q, k, v, bias, dropout, scale)

    def dropout_rate(self, module: nn.Layer) -> float | None:
        """Return the rate of a plain dropout, 0 in eval mode; None if calling the module may do more."""
        if type(module).__name__ == "Identity" and not self.hooked(module):
            return 0.0
        plain = type(module) is nn.Dropout and "forward" not in vars(module)
        if not plain or self.hooked(module):
            return None
        if module.mode != "upscale_in_train" or module.axis is not None:
            return None
        return float(module.p) if module.training else 0.0

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return nn.functional.linear(x, weight, bias)

    def double(self, module: nn.Layer) -> nn.Layer:
        # Not public, but Layer.float calls it; Layer.to and Layer.double cast integers as well.
        double: nn.Layer = module._to_impl(dtype="float64", floating_only=True)
        return double

    def device(self, module: nn.Layer) -> Any:
        return next((parameter.place for parameter in module.parameters()), None)

    def to_numpy(self, x: Array) -> Any:
        return x.detach().numpy()

    @contextmanager
    def seed_random(self, number: int) -> Iterator[None]:
        states = paddle.get_rng_state(), paddle.get_cuda_rng_state()
        paddle.seed(number)
        try:
            yield
        finally:
            paddle.set_rng_state(states[0])
            paddle.set_cuda_rng_state(states[1])

    def split_query_projection(self, module: nn.Layer) -> tuple[Projection, Projection] | None:
        if type(module) is not nn.Linear or "forward" in vars(module) or hooks_of(module):
            return None
        weight, bias, third = module.weight, module.bias, module.weight.shape[1] // 3
        if bias is None:
            return (weight[:, :third], None), (weight[:, third:], None)
        return (weight[:, :third], bias[:third]), (weight[:, third:], bias[third:])

    def ones(self, shape: tuple[int, int], device: Any) -> Array:
        return paddle.ones(shape, dtype="float32").to(device)

    def drop_traces(self, model: nn.Layer) -> None:
        """Drop the programs that ``to_static`` traced of the model or around it; calls trace them again."""
        watch_exports()
        drop_own(model)
        drop_others(vars(model)["_tome"].tower, model, warn=True)

    def forget(self, module: nn.Layer) -> None:
        """Drop the programs that ``to_static`` traced of the patched module, and its patched forward."""
        drop_others(module, module, warn=False)
        forward: Any = vars(module).get("forward")
        if hasattr(forward, "rollback"):
            forward.rollback()
            forward = vars(module).get("forward")
        if getattr(forward, "__self__", None) is module:  # rollback stores the patched method there
            del vars(module)["forward"]


class _Noting:
    """A hook that passes the output of a layer to a function."""

    def __init__(self, note: functools.partial[None]) -> None:
        self.note = note

    def __call__(self, module: nn.Layer, inputs: Any, output: Any) -> None:
        psdb.fallback(True)  # SOT mistakes an attribute that is a method for a method of this class
        self.note(output)


def _is_ours(hook: Any) -> bool:
    return hook is _key_hook or isinstance(hook, _Noting)


def hooks_of(module: nn.Layer) -> list[Any]:
    """Return the hooks that run before or after the module's own forward."""
    return [*module._forward_post_hooks.values(), *module._forward_pre_hooks.values()]


def looks_only(hook: Any) -> bool:
    """Whether a hook belongs to ``paddle.summary``, which records shapes and counts parameters."""
    return getattr(hook, "__module__", None) == "paddle.hapi.model_summary"


def _key_hook(module: nn.Layer, inputs: Any, output: Array) -> Array:
    HOST.capture_key(module, output, HOST.tracing())
    return output


# Static graphs need not convert these modules: they work on Python objects only.
paddle.jit.ignore_module(
    [calls, checks, config, contract, modules, prefix, progress, recompute, schedules]
)

HOST = PaddleHost(__name__, nn.Layer, paddle.Tensor, _WRAPPERS)
