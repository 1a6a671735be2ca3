"""Implement the host for PyTorch: its modules and hooks, and how state is attached to an activation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tomecore.adapters.engine.host import Host, Projection, PropAttn, SharedConfig
from tomecore.adapters.engine.state import Attachment, TokenState, attached_value
from tomecore.adapters.hosts.torch_attention import (
    KeyBias,
    KeyColumn,
    aligned_log,
    by_products,
    mask_is_unsafe,
    rides,
    watch_bias,
)
from tomecore.backends import Array, Backend, Bias, Sizes
from tomecore.backends.kernels.cuda.torch import bias_dtype
from tomecore.backends.torch import BACKEND, tracing

__all__ = ["HOST", "TorchHost"]

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}


class TorchHost(Host):
    """The operations of PyTorch that the patch needs.

    A state is an attribute of the activation, and in eager mode of its storage too: reentrant checkpointing
    passes a detached tensor to a block, which is a new object on the same storage. Both are freed with the
    activation.
    """

    checkpoints = ("torch.utils.checkpoint",)
    context_class = torch.autograd.function.FunctionCtx

    def backend(self) -> Backend:
        return BACKEND

    def named_children(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        return module.named_children()

    def child(self, module: nn.Module, name: str) -> Any:
        found = module._modules.get(name)  # faster than Module.__getattr__
        return getattr(module, name, None) if found is None else found

    def child_names(self, module: nn.Module) -> tuple[str, ...]:
        return tuple(module._modules)

    def named_modules(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        found: Iterator[tuple[str, nn.Module]] = module.named_modules()
        return found

    def own_tensors(self, module: nn.Module) -> list[str]:
        named = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        return [name for pairs in named for name, _ in pairs]

    def hooked(self, module: nn.Module) -> bool:
        forward = module._forward_hooks or module._forward_pre_hooks
        own = forward or module._backward_hooks or module._backward_pre_hooks
        return bool(own) or _has_global_hooks()

    def hooked_by_user(self, module: nn.Module) -> bool:
        hooks = (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
            *module._backward_hooks.values(),
            *module._backward_pre_hooks.values(),
        )
        return any(not _is_passive(hook) for hook in hooks)

    def register_key_hook(self, module: nn.Module) -> Any:
        return module.register_forward_hook(_key_hook)

    def is_listened_to(self, module: nn.Module, config: SharedConfig) -> bool:
        hooks = module._forward_hooks.values()
        return any(isinstance(hook, _Noting) and config in hook.note.args for hook in hooks)

    def unhook(self, module: nn.Module) -> None:
        hooks = module._forward_hooks
        for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
            del hooks[key]

    def watch_output(self, module: nn.Module, note: functools.partial[None]) -> None:
        module.register_forward_hook(_Noting(note))

    def tracing(self) -> bool:
        return tracing()

    def recomputing(self) -> bool:
        # Not public; tests pin that it is -1 exactly outside a backward pass. A hook may start a forward
        # pass of its own there.
        return torch._C._current_graph_task_id() != -1 and self.in_checkpoint("backward")

    def write(
        self, config: SharedConfig, x: torch.Tensor, state: TokenState, tracing: bool
    ) -> None:
        x._tome_state = Attachment(config, state)  # type: ignore[attr-defined]
        storage = None if tracing else _storage(x)
        if storage is not None:
            storage._tome_state = Attachment(config, state)

    def read(self, config: SharedConfig, x: torch.Tensor, tracing: bool) -> TokenState | None:
        state: TokenState | None = attached_value(getattr(x, "_tome_state", None), config)
        if state is None and not tracing:
            state = attached_value(getattr(_storage(x), "_tome_state", None), config)
        return state

    def keep(self, config: SharedConfig, x: torch.Tensor, name: str, value: Any) -> None:
        storage = _storage(x)
        if storage is not None:
            setattr(storage, name, Attachment(config, value))

    def recall(self, config: SharedConfig, x: torch.Tensor, name: str) -> Any:
        return attached_value(getattr(_storage(x), name, None), config)

    def symbolic(self, x: Any) -> bool:
        return isinstance(x, torch.fx.Proxy)

    def watch_bias(self, bias: Bias) -> tuple[Bias, Callable[[], bool]] | None:
        return None if tracing() else watch_bias(bias)

    def bias_dtype(self, x: torch.Tensor) -> torch.dtype:
        return bias_dtype(x) if x.is_cuda else x.dtype

    def log_sizes(self, sizes: Sizes, x: torch.Tensor) -> Bias:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if BACKEND.by_rows(x) and not sizes.requires_grad:
            return aligned_log(sizes.to(wide), x)
        return sizes.to(wide).log().to(x.dtype)[:, None, None, :]

    def with_prop_attn_form(self, bias: Bias, x: torch.Tensor, prop_attn: PropAttn = True) -> Bias:
        if prop_attn == "column" or mask_is_unsafe(bias):
            return bias.as_subclass(KeyColumn) if rides() else bias
        return bias.as_subclass(KeyBias) if by_products(x) else bias

    def attention(
        self, q: Array, k: Array, v: Array, bias: Array | None, *, dropout: float, scale: float
    ) -> Array:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale
        )
        return out.transpose(1, 2)

    def linear(self, x: Array, weight: Array, bias: Array | None) -> Array:
        return F.linear(x, weight, bias)

    def double(self, module: nn.Module) -> nn.Module:
        return module.double()

    def device(self, module: nn.Module) -> Any:
        return next((parameter.device for parameter in module.parameters()), None)

    def to_numpy(self, x: torch.Tensor) -> Any:
        return x.detach().cpu().numpy()

    @contextmanager
    def seed_random(self, number: int) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.manual_seed(number)
            yield

    def split_query_projection(self, module: nn.Module) -> tuple[Projection, Projection] | None:
        if type(module) is not nn.Linear or "forward" in module.__dict__ or self.hooked(module):
            return None
        if type(module.weight) not in (torch.Tensor, nn.Parameter):
            return None
        weight, bias, third = module.weight, module.bias, module.weight.shape[0] // 3
        if bias is None:
            return (weight[:third], None), (weight[third:], None)
        return (weight[:third], bias[:third]), (weight[third:], bias[third:])

    def ones(self, shape: tuple[int, int], device: Any) -> Array:
        return torch.ones(shape, device=device)


def _has_global_hooks() -> bool:
    """Whether there are hooks for all modules; ``register_module_forward_hook`` stores them here."""
    of_all = torch.nn.modules.module
    hooks = (
        *of_all._global_forward_hooks.values(),
        *of_all._global_forward_pre_hooks.values(),
        *of_all._global_backward_hooks.values(),
        *of_all._global_backward_pre_hooks.values(),
    )
    # Those of torch itself only count and name modules.
    return any(not str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)


#: modules whose hooks do not depend on the number of tokens
_PASSIVE = ("transformers.utils.output_capturing", "torch.nn.utils.")


class _Noting:
    """A hook that passes the output of a module to a function."""

    def __init__(self, note: functools.partial[None]) -> None:
        self.note = note

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.note(output)


def _is_ours(hook: Any) -> bool:
    return hook is _key_hook or isinstance(hook, _Noting)


def _is_passive(hook: Any) -> bool:
    """Whether a hook belongs to tomecore, records outputs for a library, or computes weights."""
    where = str(getattr(hook, "__module__", None) or type(hook).__module__)
    return _is_ours(hook) or where.startswith(_PASSIVE)


def _key_hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    HOST.capture_key(module, output, tracing())


def _storage(x: torch.Tensor) -> Any:
    """Return the storage of ``x``; None inside functorch transforms, where it cannot be accessed."""
    try:
        return x.untyped_storage()
    except NotImplementedError:
        return None


HOST = TorchHost(__name__, nn.Module, torch.Tensor, _WRAPPERS, forms=("column",))
