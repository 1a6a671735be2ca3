"""Layout and allocation of PyTorch arrays in the memory of a CPU, for the compiled kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as forward_ad
from torch._C._functorch import peek_interpreter_stack
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tomecore.backends import Array
from tomecore.backends.kernels.cpu.fused import ArrayMemory, Workspace

__all__ = ["memory", "transformed", "watched"]

_ELEMENTS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_DTYPES = {"float32": torch.float32, "int64": torch.int64}


def watched() -> bool:
    """Whether something records or transforms the operations of this thread.

    A record would miss a kernel, or hold its results as constants.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return True
    if _get_current_dispatch_mode() is not None or transformed():
        return True
    return bool(_len_torch_dispatch_stack_pre_dispatch())  # make_fx(pre_dispatch=True)


def transformed() -> bool:
    """Whether a function transform, such as ``vmap``, or forward derivatives are active in this thread."""
    return peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _elements(*arrays: Array) -> list[str] | None:
    """Return the dtypes for the kernels; None if they cannot run."""
    if watched():
        return None
    found, gradients = [], torch.is_grad_enabled()
    for x in arrays:
        element = _ELEMENTS.get(x.dtype)
        if element is None or type(x) is not torch.Tensor or not x.is_cpu or x.is_neg():
            return None
        found.append(element)
    return None if gradients and arrays[0].requires_grad else found


def _empty(like: Array, shape: tuple[int, ...], dtype: str | None) -> Array:
    return like.new_empty(shape) if dtype is None else like.new_empty(shape, dtype=_DTYPES[dtype])


def memory(
    products: Callable[[Array, Array], Array], reduced: Callable[[str], bool]
) -> ArrayMemory:
    """Return the memory of a CPU; ``products`` and ``reduced`` are the functions of the backend."""

    def space(x: Array, batch: int, evens: int, odds: int, width: int) -> Workspace:
        """Return a workspace; its products are in float32, whatever autocast and other settings allow."""
        with torch.inference_mode(False):  # otherwise it could not be reused outside that mode
            even = torch.empty((batch, evens, width), dtype=torch.float32, device=x.device)
            odd = torch.empty((batch, odds, width), dtype=torch.float32, device=x.device)
            out = torch.empty((batch, evens, odds), dtype=torch.float32, device=x.device)
        into_out = functools.partial(torch.bmm, even, odd.transpose(1, 2), out=out)
        return Workspace(even, odd, lambda: products(even, odd) if reduced("cpu") else into_out())

    return ArrayMemory(_elements, torch.Tensor.stride, _empty, space, torch.get_num_threads)
