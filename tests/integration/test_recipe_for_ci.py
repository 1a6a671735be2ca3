"""The test file of docs/how-to/compare-frameworks.md passes, and fails if the port has a fault."""

from __future__ import annotations

from typing import Any

import pytest
from scripts import ROOT, load_script

from tomecore import parity

PAGE = ROOT / "docs" / "how-to" / "compare-frameworks.md"


@pytest.fixture(scope="module")
def recipe() -> Any:
    blocks = load_script("tools/pages.py").blocks(PAGE.read_text(encoding="utf-8"), "python")
    (source,) = (block.source for block in blocks if "def test_" in block.source)
    names: dict[str, Any] = {}
    exec(compile(source, PAGE.name, "exec"), names)
    return names["test_the_port_is_the_same_model"]


def test_the_recipe_passes(recipe: Any) -> None:
    recipe(8)


def test_the_recipe_fails_with_a_fault(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = parity.transfer_weights

    def transfer_wrongly(source: Any, target: Any) -> None:
        transfer(source, target)
        weight = target.blocks[3].mlp.fc1.weight
        weight.set_value(weight * 1.01)

    monkeypatch.setattr(parity, "transfer_weights", transfer_wrongly)
    with pytest.raises(AssertionError, match=r"Likely cause: in layer 3, .*blocks\.3\.mlp\.fc1"):
        recipe(8)
