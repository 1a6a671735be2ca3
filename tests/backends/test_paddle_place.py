"""The Paddle backend on devices other than a CPU, with emulated places."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.paddle_gpu import gpu

import tomecore as tc
from tomecore import bipartite_soft_matching
from tomecore.backends import paddle as xp
from tomecore.backends import paddle_products
from tomecore.backends.paddle_means import by_groups, by_slots
from tomecore.core.mean import weighted_mean


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_one_row_is_not_sorted_by_itself_on_a_gpu(elsewhere, rows, monkeypatch):
    """Paddle sorts it by another routine there, which waits for the device and turns ties around."""
    seen = []
    for name in ("argsort", "sort"):
        function = getattr(paddle, name)
        monkeypatch.setattr(
            paddle, name, lambda x, f=function, **k: seen.append(x.shape[0]) or f(x, **k)
        )
    x = paddle.to_tensor([[3.0, 1.0, 3.0, 2.0]] * rows)

    def found():
        return xp.argsort(x, axis=1, descending=True).tolist(), xp.sort(x, axis=1).tolist()

    expected = [[0, 2, 3, 1]] * rows, [[1.0, 2.0, 3.0, 3.0]] * rows
    if elsewhere:
        with gpu((9, 0)):
            assert found() == expected
    else:
        assert found() == expected
    assert seen == [2 if elsewhere else rows] * 2


@pytest.mark.parametrize("keepdims", [False, True])
def test_sums_over_heads_are_no_batch_of_products_on_a_gpu(keepdims, monkeypatch):
    paddle.seed(0)
    x = paddle.randn([2, 5, 3, 4])
    expected = xp.sum(x, axis=2, keepdims=keepdims)
    monkeypatch.setattr(paddle, "matmul", None)
    with gpu((9, 0)):
        found = xp.sum(x, axis=2, keepdims=keepdims)
    assert found.shape == expected.shape
    assert paddle.allclose(found, expected).item()


@pytest.fixture
def merge():
    """A plan in which many tokens have one slot, tokens, and sizes."""
    paddle.seed(0)
    keys, x = paddle.randn([3, 37, 8]), paddle.randn([3, 37, 16])
    keys[:, 1:12] = keys[:, 1:2]
    plan = bipartite_soft_matching(keys, 9, protected=1)
    assert max(np.bincount(row).max() for row in plan.into.numpy()) > 3
    return plan, x, paddle.randint(1, 9, [3, 37]).astype("float32")


#: a form of the mean -> what it is computed by
FORMS = {"by groups": by_groups, "by slots": by_slots}
LIMITS = {"float32": 1e-6, "float64": 1e-14}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_mean(form, sized, dtype, merge):
    """They are the definition to rounding, and have its gradients; sizes are exact."""
    plan, x, size = merge
    x, size, found = x.astype(dtype), size if sized else None, []
    for mean in (weighted_mean, lambda *given: FORMS[form](xp.BACKEND, *given)):
        leaf = x.clone().detach()
        leaf.stop_gradient = False
        tokens, sizes = mean(plan, leaf, size, *([False] if mean is weighted_mean else []))
        (tokens * paddle.arange(16).astype(dtype)).sum().backward()
        found.append((tokens, leaf.grad, sizes))
    assert found[0][0].dtype == found[1][0].dtype
    for expected, got, scale in zip(*found, (1, 16, 0), strict=True):
        assert float((expected - got).abs().max()) <= scale * LIMITS[dtype]


@pytest.mark.parametrize("tf32", [False, True])
def test_a_mean_off_the_cpu_adds_nothing_atomically(tf32, merge, monkeypatch):
    """No two tokens are written to one row, and TF32 does not round the sums."""
    plan, x, size = merge
    expected = weighted_mean(plan, x, size, False)
    rows, write = [], paddle.scatter_
    monkeypatch.setattr(paddle, "scatter_", lambda *given: rows.append(given[1]) or write(*given))
    for name in ("index_add", "index_add_"):
        monkeypatch.setattr(paddle, name, None)
    monkeypatch.setattr(paddle_products, "tf32", lambda: tf32)
    with gpu((9, 0)):
        found = weighted_mean(plan, x, size, False)
    assert len(rows) == 2
    assert all(len(set(written.tolist())) == 27 for written in rows)
    assert float((expected[0] - found[0]).abs().max()) < 1e-6
    assert bool((expected[1] == found[1]).all())


def test_an_infinite_token_stays_in_its_group(merge):
    plan, x, size = merge
    x[0, plan.merged[0, 0]] = float("inf")
    finite = paddle.isfinite(weighted_mean(plan, x, size, False)[0]).sum()
    for form in FORMS.values():
        assert (
            paddle.isfinite(form(xp.BACKEND, plan, x, size)[0]).sum() == finite == x.size - 16 * 28
        )


def test_large_groups_of_narrow_tokens_keep_the_definition():
    """The (r, r) products would be larger than the tokens."""
    plan = bipartite_soft_matching(paddle.randn([2, 37, 8]), 9)
    assert by_groups(xp.BACKEND, plan, paddle.randn([2, 37, 8]), None) is None


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("x", "size", "merged", "into"),
    [
        ([1, 2, np.nan, 4], None, [2, 3], [0, 1]),
        ([np.nan, 2, 1, 4], None, [2, 3], [0, 1]),
        ([1, 2, np.inf, 4], None, [2, 3], [0, 1]),
        ([np.inf, 2, -1, 4], None, [2, 3], [0, 1]),
        ([-LARGEST, 0, LARGEST, 0], [1, 1, 4, 1], [2, 3], [0, 1]),
        ([-2.5e38, 0, 3e38, 0], [1, 1, 9, 1], [2, 3], [0, 1]),
        ([0, np.inf, -np.inf], None, [1, 2], [0, 0]),
        ([3e38, np.inf, -3e38], [1, 1, 9], [1, 2], [0, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_of_extreme_numbers_are_those_of_the_definition(x, size, merged, into, dtype):
    """An infinite token, or NaN, changes its own slot only; the largest numbers do not overflow."""
    kept = [number for number in range(len(x)) if number not in merged]
    plan = tc.MergePlan(*(paddle.to_tensor([one]) for one in (kept, merged, into)))
    tokens = paddle.to_tensor(np.tile(np.array(x, dtype)[None, :, None], (1, 1, 4)))
    size = None if size is None else paddle.to_tensor([size], dtype="float32")
    expected, sizes = tc.merge_weighted(plan, tokens, size)
    for form in FORMS.values():
        found, found_sizes = form(xp.BACKEND, plan, tokens, size)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-6)
        np.testing.assert_array_equal(found_sizes.numpy(), sizes.numpy())
