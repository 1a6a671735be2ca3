"""The batch from which merging can be faster on a GPU: by hand, and where it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tomecore.errors import ArgumentValueError
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic
from tomecore.schedule.gpu import CALLS, FUSED, GRAPH, H200, Merge, break_even_batch


def vit(width: int, depth: int = 12) -> Arithmetic:
    """A ViT with patches of 16 pixels and one class token."""
    layer = LayerArithmetic(4 * width**2, 8 * width**2, width)
    return Arithmetic((layer,) * depth, 1, 768 * width, 0, 1000 * width)


def test_by_hand() -> None:
    """One layer of two merges: 26 + 40 launches of 1 s, on a GPU that does one operation a second."""
    one = Arithmetic((LayerArithmetic(1, 1, 0),) * 2, 0, 0, 0, 0)
    slow = replace(H200, flops=1.0, bandwidth=1e9, launch=(1.0, 2.0))
    operations = 2 * 2 * 2 * 10  # 10 tokens
    expected = (66 + operations - 1) // operations, (132 + operations - 1) // operations
    assert break_even_batch(one, 10, [2, 0], merge=Merge(40, 1), gpu=slow) == expected


def test_wider_models_and_fewer_launches_need_smaller_batches() -> None:
    batches = [break_even_batch(vit(width), 197, 16) for width in (192, 384, 768)]
    assert batches == sorted(batches, reverse=True)
    assert batches[-1] is not None
    (calls, _), (fused, _), (graph, _) = (
        break_even_batch(vit(768), 197, 16, merge=merge, gpu=gpu) or (0, 0)
        for merge, gpu in ((CALLS, H200), (FUSED, H200), (FUSED, GRAPH))
    )
    assert calls > fused > graph > 1
    few = break_even_batch(vit(768), 197, [30, 30, 30] + [0] * 9)
    assert few is not None
    assert few[0] < batches[-1][0]


@pytest.mark.parametrize("r", [0, [0] * 12], ids=str)
def test_without_merging_there_is_no_gain(r: object) -> None:
    assert break_even_batch(vit(768), 197, r) is None


def test_what_moves_more_memory_than_it_saves_never_pays() -> None:
    assert break_even_batch(vit(32), 197, 2) is None


def test_tokens_are_checked() -> None:
    with pytest.raises(ArgumentValueError, match="num_tokens"):
        break_even_batch(vit(32), 0, 2)


#: the rows of the table in docs/when-merging-pays.md: name, width, depth, tokens, and r of the first schedule
MODELS = (
    ("ViT-Ti", 192, 12, 197, 16),
    ("ViT-S", 384, 12, 197, 16),
    ("ViT-B", 768, 12, 197, 16),
    ("ViT-L", 1024, 24, 197, 8),
    ("ViT-L, 384 pixels", 1024, 24, 577, 23),
)
ROWS = [(model, schedule) for model in MODELS for schedule in ("every layer", "early")]


def row(model: tuple[str, int, int, int, int], schedule: str) -> str:
    name, width, depth, tokens, r = model
    wanted = r if schedule == "every layer" else [30, 30, 30] + [0] * (depth - 3)
    cells = []
    for merge, gpu in ((CALLS, H200), (FUSED, H200), (FUSED, GRAPH)):
        found = break_even_batch(vit(width, depth), tokens, wanted, merge=merge, gpu=gpu)
        assert found is not None
        low, high = found
        cells.append(str(low) if low == high else f"{low} to {high}")
    return f"| {name} | {schedule} | {' | '.join(cells)} |"


@pytest.mark.parametrize(("model", "schedule"), ROWS, ids=str)
def test_the_table_of_the_page(model: tuple[str, int, int, int, int], schedule: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "when-merging-pays.md"
    assert row(model, schedule) in page.read_text().splitlines()
