"""``benchmarks/attention_forms.py``: every form of proportional attention is the same function."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest
import torch
from scripts import load_script
from torch.nn.attention import SDPBackend

from tomecore.adapters.hosts.torch_attention import attention_by_products

ROOT = Path(__file__).parents[2]


script = load_script("benchmarks/attention_forms.py")
SIZED = [name for name in script.FORMS if name != "plain"]


def by_loops(q, k, v, sizes):
    """The equation, with a token of size s counted s times."""
    out = torch.empty_like(v)
    for b, h, row in (
        (b, h, n) for b in range(q.shape[0]) for h in range(q.shape[1]) for n in range(q.shape[2])
    ):
        often = sizes[b].long()
        keys, values = (t[b, h].repeat_interleave(often, 0) for t in (k, v))
        weights = (keys @ q[b, h, row] / q.shape[-1] ** 0.5).exp()
        out[b, h, row] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
@pytest.mark.parametrize("name", SIZED)
def test_forms_count_a_token_as_often_as_its_size(name, padded):
    q, k, v, sizes = script.inputs(2, 3, 19, torch.float64, "cpu")
    if padded:
        sizes[1, -4:] = 0
    out = script.FORMS[name](q, k, v, sizes)
    expected = by_loops(q, k, v, sizes)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(script.reference(q, k, v, sizes), expected, rtol=1e-12, atol=1e-12)
    assert (script.plain(q, k, v, sizes) - expected).abs().max() > 0.1


def test_products_are_those_of_the_adapter():
    q, k, v, sizes = script.inputs(2, 3, 160, torch.bfloat16, "cpu")
    bias = sizes.log().to(q.dtype)[:, None, None, :]
    expected = attention_by_products(q, k, v, bias)
    assert torch.equal(script.products(q, k, v, sizes), expected)
    assert not torch.equal(script.key_bias(q, k, v, sizes), expected)


def test_a_kernel_that_refuses_is_named_and_not_timed():
    given = script.inputs(1, 2, 9, torch.float32, "cpu")
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    calls, refused = script.calls_of(given, kernels)
    unrestricted = list(script.FORMS)
    assert list(calls) == [
        *unrestricted,
        *(f"{n} (flash)" for n in unrestricted if n != "products"),
    ]
    assert list(refused) == [f"{name} (cudnn)" for name in unrestricted if name != "products"]
    assert all("backend" in reason for reason in refused.values())


def test_the_design_page_quotes_the_results():
    results = ROOT / "benchmarks" / "results" / "attention-forms-cpu.json"
    cells = json.loads(results.read_text())["cells"]
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("| | float32, few scores |")[2].partition("\n\n")[0]
    rows = [re.split(r" *\| *", row)[2:-1] for row in table.splitlines()[2:]]
    kinds = [(dtype, few) for dtype in ("float32", "bfloat16") for few in (True, False)]
    expected = []
    for name in SIZED:
        expected.append([])
        for kind in kinds:
            found = [
                cell["relative"][name][1]
                for cell in cells
                if kind
                == (cell["dtype"], cell["batch"] * cell["heads"] * cell["tokens"] ** 2 < script.FEW)
            ]
            spread = f"{min(found):.2f}-{max(found):.2f}, median {statistics.median(found):.2f}"
            expected[-1].append(spread)
    assert rows == expected
