"""Estimate from which batch size merging can be faster on a GPU.

A GPU is busy only if its kernels take longer than the host needs to start them. At small batches it waits,
and merging starts more kernels. So merging can win only from the batch at which the unpatched model keeps the
GPU busy for longer than the starts of the merging model take. Everything here is computed from counts, and
nothing was measured on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tomecore.core.checks import whole_number
from tomecore.schedule.arithmetic import Arithmetic, arithmetic_of
from tomecore.schedule.parse import R, parse_r

__all__ = ["CALLS", "FUSED", "GRAPH", "H200", "Gpu", "Merge", "break_even_batch"]

#: kernels and copies that an unpatched block starts, and those around all blocks (timm's ViT, bfloat16)
_BLOCK, _AROUND = 10, 6


@dataclass(frozen=True)
class Merge:
    """The cost of one merge on a GPU, in half precision.

    Args:
        launches: kernels and copies that a merging block starts beyond those of the unpatched block.
        bytes: bytes that it moves for each token that enters the block and each channel.
    """

    launches: int
    bytes: float


#: the library's calls; the counts of tests/integration/test_cuda_launches.py
CALLS = Merge(launches=37, bytes=13.0)
#: the fused kernels (Triton)
FUSED = Merge(launches=6, bytes=6.5)


@dataclass(frozen=True)
class Gpu:
    """A GPU and its host.

    Args:
        flops: operations per second that matrix products reach; a multiply-add counts twice.
        bandwidth: bytes per second.
        launch: seconds that the host needs to start a kernel, at best and at worst.
    """

    flops: float
    bandwidth: float
    launch: tuple[float, float]


#: an NVIDIA H200 in bfloat16, whose matrix products reach 60 % of 788 TFLOP/s in a ViT-B
H200 = Gpu(flops=470e12, bandwidth=4.3e12, launch=(5e-6, 8e-6))
#: the same with CUDA graphs, where a kernel that is started has 2 us
GRAPH = Gpu(flops=470e12, bandwidth=4.3e12, launch=(2e-6, 2e-6))


def break_even_batch(
    model: Any, num_tokens: int, r: R, *, merge: Merge = CALLS, gpu: Gpu = H200
) -> tuple[int, int] | None:
    """Estimate the batch size from which a merging model can be faster than the unpatched one on a GPU.

    Args:
        model: a patched model, or its ``Arithmetic``.
        num_tokens: tokens that enter the first block, protected ones included.
        r: any form of ``r``.
        merge: the cost of a merge, :data:`CALLS` or :data:`FUSED`.
        gpu: the GPU; :data:`GRAPH` for a model that runs as a CUDA graph.

    Returns:
        The batch size at the shortest and at the longest time that a launch takes. None: merging is not
        faster at any batch size, because it moves more memory than it saves operations, or nothing merges.

    Raises:
        NotPatchedError: the model is not patched.
        ArgumentTypeError, ArgumentValueError: as in :func:`tomecore.parse_r`.
    """
    arithmetic = model if isinstance(model, Arithmetic) else arithmetic_of(model)
    tokens = whole_number(num_tokens, "num_tokens", at_least=1)
    wanted = parse_r(len(arithmetic.layers), r, num_tokens=tokens, protected=arithmetic.protected)
    merges, moved, entering = 0, 0.0, tokens
    for layer, merged in zip(arithmetic.layers, arithmetic.merged(tokens, wanted), strict=True):
        if merged:
            merges += 1
            moved += merge.bytes * entering * layer.width
        entering -= merged
    unpatched = 2 * arithmetic.unpatched.multiply_adds(tokens, 0) / gpu.flops
    merging = 2 * arithmetic.multiply_adds(tokens, wanted) / gpu.flops + moved / gpu.bandwidth
    if not merges or merging >= unpatched:
        return None
    launches = _AROUND + _BLOCK * len(arithmetic.layers) + merge.launches * merges
    low, high = (max(1, math.ceil(launches * seconds / unpatched)) for seconds in gpu.launch)
    return low, high
