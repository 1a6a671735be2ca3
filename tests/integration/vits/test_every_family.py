"""Each row of the table of models is under the laws, on a real class."""

from __future__ import annotations

import pytest

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters.engine.find import find_tower
from vits.cases import MORE, PLAIN
from vits.of_transformers import SINGLE

#: What the laws, which compute in float64, cannot run on, and where it is tested instead.
ELSEWHERE = {
    "OpenAI CLIP VisionTransformer": "test_open_clip.py: its norms compute in float32",
    "transformers DINOv2 before 5.18": "by hand, on transformers 5.9.0 and 5.17",
}


def families(adapter):
    """Family -> names of the cases of it."""
    found = {spec.family: [] for spec in adapter.SPECS}
    for case in [*PLAIN, *MORE, *SINGLE]:
        if case.fw.tome is adapter:
            spec, _, _ = find_tower(adapter.HOST, adapter.SPECS, case.build(img_size=16, depth=1))
            found[spec.family].append(case.name)
    return found


@pytest.mark.parametrize(
    "adapter", [tomecore.adapters.torch, tomecore.adapters.paddle], ids=["torch", "paddle"]
)
def test_every_family_has_a_case(adapter):
    missing = {family for family, cases in families(adapter).items() if not cases}
    assert missing <= ELSEWHERE.keys()
