"""What the Paddle backend does elsewhere than on a CPU, with places that say so."""

from __future__ import annotations

import paddle
import pytest
from adapters.paddle_gpu import gpu

from tomecore.backends import paddle as xp


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
