"""Similarities in float32 where settings allow less: in JAX, and in the compiled kernels' own product."""

from __future__ import annotations

import jax
import numpy as np
import torch
from kernel_cases import TORCH, agree, asked, defined, fused

import tomecore as tc
from tomecore.backends.kernels.cpu import fused as fused_module


def test_jax_multiplies_in_full_precision():
    """Its default is TF32 on a GPU and bfloat16 on a TPU."""
    keys = jax.numpy.ones((1, 9, 4), dtype="float32")
    for match in (
        tc.bipartite_soft_matching,
        tc.kth_bipartite_soft_matching,
        tc.random_bipartite_soft_matching,
    ):
        graph = str(jax.make_jaxpr(lambda keys, match=match: match(keys, 3).slots)(keys))
        assert graph.count("dot_general") == graph.count("Precision.HIGHEST") // 2 == 1, graph


def test_kernels_take_a_careful_product(monkeypatch):
    """A product that rounds float32 to 8 bits, as "medium" allows on some processors, does not reach them."""
    key = np.random.default_rng(0).standard_normal((4, 41, 1, 8)) + 2
    given = asked(TORCH, key)
    wanted = defined(TORCH, key, *given[1:], 12, 1)
    product, used = torch.bmm, []

    def bmm(a, b, out=None):
        used.append(a.dtype)
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return product(a, b) if out is None else product(a, b, out=out)

    monkeypatch.setattr(torch, "bmm", bmm)
    monkeypatch.setattr(fused_module, "_kept", fused_module.Kept())
    rounded = fused(*given, 12, 1)
    assert not np.array_equal(rounded.tokens, wanted.tokens), "the emulation says nothing"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        agree(TORCH, fused(*given, 12, 1), wanted)
    finally:
        torch.set_float32_matmul_precision(before)
    assert used == [torch.float32, torch.float64]
