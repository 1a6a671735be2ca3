"""The forms of torch on a GPU (``backends/torch_rows.py``) give what the array-API form gives.

They run on this machine's CPU: the same calls, other kernels below them. How many kernels a GPU launches is
in ``tests/integration/test_cuda_launches.py``.
"""

from __future__ import annotations

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import test_edges as edges
import test_matching as matching
import torch
from libraries import LIBRARIES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tomecore as tc
import tomecore.adapters.torch as tome
from tomecore.backends import torch as torch_backend
from tomecore.backends import torch_products, torch_rows
from tomecore.core.mean import weighted_mean
from tomecore.matching.bipartite import match_bipartite

BACKEND, LIBRARY = torch_backend.BACKEND, LIBRARIES["torch"]
WIDE = [wide for wide in edges.WIDE if wide.library is LIBRARY]
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@pytest.fixture(autouse=True)
def by_rows(monkeypatch):
    """Use these forms on a CPU, and check that each test reached them."""
    monkeypatch.setattr(BACKEND, "by_rows_on", {"cpu"})
    found = {}
    for name in ("average_rows", "rows_of_pairs"):
        found[name] = mock.Mock(side_effect=getattr(torch_rows, name))
        monkeypatch.setattr(torch_backend, name, found[name])
    yield found
    assert any(call.called for call in found.values())


def definition(function, *args):
    """Call a function with the array-API form."""
    with mock.patch.object(BACKEND, "by_rows_on", set()):
        return function(*args)


# ---- what the tests of the definition ask


@pytest.mark.parametrize(("values", "sizes"), edges.GROUPS.values(), ids=edges.GROUPS.keys())
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_nothing_overflows(wide, values, sizes):
    edges.test_nothing_overflows(wide, values, sizes)


@pytest.mark.parametrize(
    ("values", "sizes", "mean"), edges.INFINITE.values(), ids=edges.INFINITE.keys()
)
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_infinity_stays_infinite(wide, values, sizes, mean):
    edges.test_infinity_stays_infinite(wide, values, sizes, mean)


@pytest.mark.parametrize(
    ("values", "sizes", "mean"), edges.PADDED.values(), ids=edges.PADDED.keys()
)
@pytest.mark.parametrize("wide", WIDE, ids=repr)
def test_what_weighs_nothing_counts_for_nothing(wide, values, sizes, mean):
    edges.test_what_weighs_nothing_counts_for_nothing(wide, values, sizes, mean)


@pytest.mark.parametrize("shape", matching.SHAPES[4:], ids=str)
def test_plans_of_the_reference(rng, shape):
    matching.TestGrid().test_bipartite(LIBRARY, rng, shape)


def test_ties():
    matching.test_ties_by_hand(LIBRARY)
    matching.test_many_ties_are_sorted_stably(LIBRARY)


def test_gradients_next_to_infinity():
    edges.test_gradients_next_to_infinity(LIBRARY)


# ---- random cases, against the definition


def draw(seed, dtype):
    """Return keys, tokens, r, prefix tokens, and which tokens are real, None for all."""
    rng = np.random.default_rng(seed)
    batch, tokens = int(rng.integers(1, 4)), int(rng.integers(4, 40))
    protected = int(rng.integers(0, 3))
    r = int(rng.integers(1, max(2, (tokens - protected) // 2 + 1)))
    keys = torch.tensor(rng.normal(size=(batch, tokens, 5)))
    keys[:, :, 0] += float(rng.integers(0, 3))  # if similar, many tokens go to one
    x = torch.tensor(rng.normal(size=(batch, tokens, 6))).to(dtype)
    valid = None
    if seed % 3 == 0:
        valid = torch.arange(tokens) < torch.tensor(rng.integers(1, tokens + 1, (batch, 1)))
        x = torch.where(valid[..., None], x, torch.nan)
    size = torch.tensor(rng.integers(1, 9, (batch, tokens))).float()
    size = size * valid if valid is not None else size if seed % 2 else None
    return keys, x, size, r, protected, valid


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_plans_and_means(dtype):
    """The same plan and sizes; half precision is rounded once, from float32."""
    for seed in range(40):
        keys, x, size, r, protected, valid = draw(seed, dtype)
        r = min(r, (x.shape[1] - protected) // 2)
        arguments = BACKEND, keys, r, protected, valid
        plan, expected = match_bipartite(*arguments), definition(match_bipartite, *arguments)
        for name in ("kept", "merged", "into", "slots"):
            assert torch.equal(getattr(plan, name), getattr(expected, name)), (seed, name)
        out, sizes = tc.merge_weighted(plan, x, size)
        exact, wanted = definition(tc.merge_weighted, expected, x.double(), size)
        assert torch.equal(sizes, wanted), seed
        assert out.dtype == dtype
        nan = exact.isnan()
        assert torch.equal(out.isnan(), nan), seed
        found, exact = out.double()[~nan], exact[~nan]
        if dtype.itemsize == 2:  # half a unit in the last place, and a little
            bound = 0.502 * torch.finfo(dtype).eps * (exact.abs() + 1e-3)
        else:
            bound = 4 * torch.finfo(dtype).eps * x.double().nan_to_num().abs().max()
        assert ((found - exact).abs() <= bound).all(), seed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["real", "padded"])
def test_weights_of_a_plan(dtype, padded):
    for seed, (mean, share) in itertools.product(range(6), [(1, 0), (0, 1), (1, 1)]):
        keys, x, size, r, protected, valid = draw(3 * seed + 3 if padded else 3 * seed + 1, dtype)
        r = min(r, (x.shape[1] - protected) // 2)
        plan = definition(match_bipartite, BACKEND, keys, r, protected, valid)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(x.shape[:2], generator=generator).round(decimals=1)
        shares = torch.rand(plan.into.shape, generator=generator)
        plan = plan.weighted(
            mean_weight=weights if mean else None, size_weight=shares if share else None
        )
        found = tc.merge_weighted(plan, x, size)
        for one, other in zip(found, definition(tc.merge_weighted, plan, x, size), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_infinity_stays_in_its_slot():
    """The product over all pairs must not spread it to the other slots of the sample."""
    plan = tc.MergePlan(*(torch.tensor([one]) for one in ([0, 1, 5], [2, 3, 4], [0, 1, 1])))
    for dtype, bad in itertools.product(DTYPES.values(), (math.inf, -math.inf, math.nan)):
        for place in range(5):
            x = torch.arange(12.0).reshape(1, 6, 2).to(dtype)
            x[0, place, 0] = bad
            out, _ = tc.merge_weighted(plan, x)
            expected, _ = definition(tc.merge_weighted, plan, x)
            torch.testing.assert_close(out, expected, equal_nan=True)


def test_many_pairs_use_the_definition(by_rows):
    """The product grows with the square of r."""
    r = torch_rows.LARGEST_R + 1
    keys = torch.randn(1, 2 * r, 4, generator=torch.Generator().manual_seed(0))
    for amount in (r - 1, r):
        plan = tc.bipartite_soft_matching(keys, amount)
        out, _ = tc.merge_weighted(plan, keys)
        expected, _ = definition(tc.merge_weighted, plan, keys)
        torch.testing.assert_close(out, expected)
        assert by_rows["average_rows"].call_count == by_rows["rows_of_pairs"].call_count == 1


# ---- gradients, and what watches operations


def crowd():
    """A plan in which two and three tokens go to one, weights, and what they weigh."""
    plan = tc.MergePlan(
        *(torch.tensor([one]) for one in ([0, 2, 7], [1, 3, 4, 5, 6], [0, 1, 1, 1, 0]))
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    return plan, x, torch.tensor([[1.0, 2, 3, 1, 5, 1, 1, 2]])


def test_gradients_and_their_gradients():
    """A slot that several tokens go to passes its gradient to each token once."""
    plan, x, size = crowd()
    assert torch.autograd.gradcheck(lambda x: tc.merge_weighted(plan, x, size)[0], x)
    assert torch.autograd.gradgradcheck(
        lambda x: (tc.merge_weighted(plan, x, size)[0] ** 2).sum(), x
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_half_precision(dtype):
    plan, x, size = crowd()
    found = []
    for function in (tc.merge_weighted, lambda *args: definition(tc.merge_weighted, *args)):
        half = x.detach().to(dtype).requires_grad_()
        out, _ = function(plan, half, size)
        out.float().pow(2).sum().backward()
        found.append(half.grad)
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0], found[1], rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


def test_gradients_of_weights():
    plan, x, size = crowd()
    found = []
    for function in (tc.merge_weighted, lambda *args: definition(tc.merge_weighted, *args)):
        weights = torch.linspace(1, 2, 8)[None].requires_grad_()
        shares = torch.linspace(0.1, 1, 5)[None].requires_grad_()
        weighted = plan.weighted(mean_weight=weights, size_weight=shares)
        out, sizes = function(weighted, x, size)
        (out.pow(2).sum() + sizes.pow(2).sum()).backward()
        found.append((weights.grad, shares.grad))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_the_values_do_not_depend_on_gradients():
    """A checkpoint computes a block both ways, and must merge the same tokens later."""
    plan, x, size = crowd()
    for dtype in DTYPES.values():
        given = x.detach().to(dtype).requires_grad_()
        with torch.no_grad():
            plain = tc.merge_weighted(plan, given, size)[0]
        assert torch.equal(plain, tc.merge_weighted(plan, given, size)[0])


def test_vmap_and_graphs_use_the_definition(by_rows):
    plan, x, size = crowd()
    x = x.detach()
    expected = tc.merge_weighted(plan, x, size)[0]

    def one(x):
        return tc.merge_weighted(plan, x, size)[0]

    calls = by_rows["average_rows"].call_count
    torch.testing.assert_close(torch.func.vmap(one)(x[None])[0], expected)
    compiled = torch.compile(one, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert by_rows["average_rows"].call_count == calls


def test_reduced_precision_of_products_is_not_used(monkeypatch):
    """If TF32 is allowed, the product of the mean runs in float64, with gradients."""
    monkeypatch.setattr(torch_products, "may_reduce", lambda kind: True)
    used = []
    monkeypatch.setattr(
        torch_products, "matmul", lambda a, b: used.append(a.dtype) or torch.bmm(a, b)
    )
    plan, x, size = crowd()
    x = x.detach().float().requires_grad_()
    out, _ = tc.merge_weighted(plan, x, size)
    assert used == [torch.float64]
    out.sum().backward()
    assert (x.grad != 0).all()


# ---- how it is computed


class Calls(TorchDispatchMode):
    """Record the ATen calls, and the bytes that they read and write.

    A gather reads the rows that it returns, a scatter writes the rows of its source, a view moves nothing.
    """

    FREE = ("device", "empty", "empty_like", "new_empty", "detach")

    GATHERS = ("index_select", "gather")
    SCATTERS = ("index_copy_", "index_add_", "scatter_", "scatter_add_", "scatter_reduce_")

    def __init__(self):
        super().__init__()
        self.bytes, self.found = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in self.FREE:
            given = [
                a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(a)
            ]
            results = [a for a in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(a)]
            given = [a for a in given if all(a is not one for one in results)]
            if name in self.GATHERS:
                given[0] = results[0]
            if name in self.SCATTERS:
                results = given[-1:]
            self.bytes += sum(a.numel() * a.element_size() for a in (*given, *results))
            self.found.append((name, args))
        return out


def test_nothing_is_added_atomically_that_rounds():
    """The same bits come twice without deterministic mode."""
    keys, x, _, _, _, _ = draw(1, torch.float32)
    size = torch.arange(1.0, x.shape[1] + 1).expand(x.shape[:2]).contiguous()
    with Calls() as calls:
        out, _ = tc.merge_weighted(match_bipartite(BACKEND, keys, 3, 1, None), x, size)
    assert out.isfinite().all()
    names = {name for name, _ in calls.found}
    assert not names & {
        "scatter_add_",
        "scatter_add",
        "index_add",
        "index_put_",
        "_index_put_impl_",
    }
    sums = [args[3] for name, args in calls.found if name == "index_add_"]
    assert len(sums) == 2
    for added in sums:
        assert torch.equal(added, added.round())  # whole numbers, exact in any order
    assert [name for name, _ in calls.found].count("sort") == 1


def bytes_of_a_merge(dtype):
    """Return the bytes that a later merge of ViT-B/16 moves, at batch 256 and r = 16, from 181 tokens."""
    with FakeTensorMode():
        qkv = torch.empty(256, 181, 3, 12, 64, dtype=dtype).permute(2, 0, 3, 1, 4)
        x, size = torch.empty(256, 181, 768, dtype=dtype), torch.empty(256, 181)
        with Calls() as calls:
            tome.HOST.log_sizes(size, x)
            key = BACKEND.sum_in(qkv[1], 1, torch.float32)
            plan = match_bipartite(BACKEND, key, 16, 1, None)
            weighted_mean(plan, x, size, False)
    return calls.bytes / 1e6


def test_bytes_of_a_merge():
    """Half precision moves at most 460 MB, where the array-API form moves over 1,100."""

    assert bytes_of_a_merge(torch.bfloat16) <= 460
    assert definition(bytes_of_a_merge, torch.bfloat16) > 1100


@pytest.mark.parametrize("tokens", [180, 181, 184])
def test_rows_of_a_bias_are_aligned(tokens):
    """The memory-efficient kernel reads such a mask without a copy."""
    size = torch.arange(1.0, 2 * tokens + 1).reshape(2, tokens)
    match_bipartite(BACKEND, torch.randn(1, 8, 2), 1, 0, None)
    for dtype in DTYPES.values():
        x = torch.empty(2, tokens, 8, dtype=dtype)
        bias = tome.HOST.log_sizes(size, x)
        assert (bias.dtype, bias.shape) == (dtype, (2, 1, 1, tokens))
        assert bias.stride(-1) == 1
        assert not any(stride % 8 for stride in bias.stride()[:-1])
        assert torch.equal(bias, definition(tome.HOST.log_sizes, size, x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            wanted = torch.float64 if dtype == torch.float64 else torch.bfloat16
            assert tome.HOST.log_sizes(size, x).dtype == wanted


# ---- what was broken once


def test_an_empty_batch(by_rows):
    by_rows["average_rows"].called = True  # the definition computes it
    keys = torch.zeros(0, 9, 4)
    plan = tc.bipartite_soft_matching(keys, 3, protected=1)
    assert tc.merge_weighted(plan, keys)[0].shape == (0, 6, 4)


def test_a_plan_of_int32():
    plan = tc.MergePlan(*(torch.tensor([one], dtype=torch.int32) for one in ([0, 1], [2], [1])))
    out, _ = tc.merge_weighted(plan, torch.tensor([[[1.0], [2.0], [4.0]]]))
    assert out.flatten().tolist() == [1, 3]


def test_a_plan_of_inference_mode_serves_gradients_later():
    x = torch.randn(2, 9, 4)
    with torch.inference_mode():
        plan = tc.bipartite_soft_matching(x, 3)
        tc.merge_weighted(plan, x)
    x.requires_grad_()
    tc.merge_weighted(plan, x)[0].sum().backward()
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_gradients_are_not_rounded_within_autocast(half):
    x = torch.randn(1, 9, 4, requires_grad=True)
    plan = tc.bipartite_soft_matching(x.detach(), 3)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=half, enabled=enabled):
            (tc.merge_weighted(plan, x)[0].sum() * 1.2345678e-8).backward()
        grads.append(x.grad.clone())
        x.grad = None
    torch.testing.assert_close(grads[0], grads[1])


def test_forward_derivatives_in_half_precision():
    x = torch.randn(1, 9, 4, dtype=torch.bfloat16)
    plan = tc.bipartite_soft_matching(x, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        out = tc.merge_weighted(plan, dual)[0]
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, torch.ones_like(tangent))


def test_vmap_over_sizes_only():
    x, sizes = torch.randn(1, 9, 4), torch.rand(3, 1, 9) + 0.5
    plan = tc.bipartite_soft_matching(x, 3)
    found = torch.vmap(lambda size: tc.merge_weighted(plan, x, size)[0])(sizes)
    expected = torch.stack([tc.merge_weighted(plan, x, size)[0] for size in sizes])
    torch.testing.assert_close(found, expected)
