"""``prop_attn="column"`` on real models: the same function as the mask."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.frameworks import TORCH

from tomecore.adapters.hosts import torch_attention as forms
from vits.cases import MORE, PLAIN

#: calls of a block, where it is not one: two branches; eager attention; sizes within biases of pairs
CALLS = {
    **dict.fromkeys(("timm-diff", "timm-diff-parallel", "timm-things"), 2),
    "timm-unfused": 0,
    **dict.fromkeys(("timm-beit", "timm-beit-shared"), 0),
    **dict.fromkeys(("timm-rel-pos", "timm-rel-pos-shared", "timm-rel-pos-post-norm"), 0),
    **dict.fromkeys(("transformers-beit", "transformers-beit-shared"), 0),
}


@pytest.mark.parametrize(
    "case", [c for c in [*PLAIN, *MORE] if c.fw is TORCH], ids=lambda case: case.name
)
def test_a_column_counts_sizes_as_the_mask_does(case, monkeypatch):
    used, by_column = [], forms.attention_by_column

    def counted(*args, **kwargs):
        used.append(1)
        return by_column(*args, **kwargs)

    monkeypatch.setattr(forms, "attention_by_column", counted)
    images, outputs = case.images(), {}
    for form in (True, "column", False):
        model = case.patched(r=8, prop_attn=form)
        used.clear()
        outputs[form] = case.fw.forward(model, images)
        assert len(used) == (3 * CALLS.get(case.name, 1) if form == "column" else 0)
    scale = np.abs(outputs[True]).max()
    limit = (2e-5 if case.rounds else 1e-12) * scale
    np.testing.assert_allclose(outputs["column"], outputs[True], rtol=0, atol=limit)
    assert np.abs(outputs[False] - outputs[True]).max() > 1e-4 * scale
