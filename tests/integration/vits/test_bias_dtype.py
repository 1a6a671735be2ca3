"""Every family passes a bias in the dtype of its queries to the fused attention, also under autocast.

Kernels of a GPU may read a mask of another dtype as if it had that of the queries. Each case is the first
of a spec, because the attention half of a family decides what it does to queries and masks.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from adapters.cases import one_of_each_spec
from adapters.frameworks import TORCH
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tomecore.adapters.hosts.torch import BACKEND
from vits.cases import MORE, PLAIN

CASES = [case for case in one_of_each_spec([*PLAIN, *MORE]) if case.fw is TORCH]


class Given(TorchFunctionMode):
    """Record the dtypes of query and mask that a library passes to the fused attention."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            query = args[0] if args else kwargs["query"]
            if mask is not None:
                self.found.append((mask.dtype, query.dtype))
        return function(*args, **kwargs)


class Received(TorchDispatchMode):
    """Record the dtypes of query and mask that a kernel gets, after autocast."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "scaled_dot_product" in str(function):
            mask = kwargs.get("attn_mask")
            if mask is not None:
                self.found.append((mask.dtype, args[0].dtype))
        return function(*args, **kwargs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bias_has_the_dtype_of_the_queries(case, monkeypatch):
    """With the form of a GPU (``aligned_log``), which casts by itself."""
    monkeypatch.setattr(BACKEND, "by_rows_on", {"cpu"})
    model = case.patched(depth=3, prop_attn=True).float()
    model.r = 8
    images = case.tensors().float()
    with torch.no_grad(), Given() as plain:
        model(images)
    assert plain.found
    assert all(mask == query for mask, query in plain.found)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), Received() as cast:
        model(images)
    assert all(mask == query for mask, query in cast.found)
    model.bfloat16()
    with torch.no_grad(), Given() as half:
        model(images.bfloat16())
    assert len(half.found) == len(plain.found)
    assert all(mask == query for mask, query in half.found)
