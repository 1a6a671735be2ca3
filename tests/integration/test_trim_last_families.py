"""Trimming in every family: exact if it is supported, and otherwise nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapters.cases import Case
from vits.cases import MORE, PLAIN, case_named

from tomecore.errors import UnsupportedModelError

torch.set_num_threads(1)

#: models that are trimmed; every other one is refused
TAKEN = [
    *(f"timm-{name}" for name in ("plain", "distilled", "unfused", "gated", "layer-scale")),
    *(f"timm-{name}" for name in ("qk-norm", "scale-attn-norm", "registers", "no-embed-class")),
    *(f"timm-{name}" for name in ("dynamic", "drop-path", "rms-swiglu")),
    *(f"torchvision-{name}" for name in ("plain", "one-head", "rms", "conv-stem")),
    *(f"transformers-{name}" for name in ("vit", "deit", "msn", "vivit", "dinov2-swiglu")),
    *(f"transformers-{name}" for name in ("clip", "metaclip2", "altclip", "chinese-clip")),
    *(f"transformers-{name}" for name in ("dinov3", "dinov3-gated")),
    *(f"open_clip-{name}" for name in ("plain", "layer-scale")),
    *(f"paddleclas-{name}" for name in ("plain", "scaled", "drop-path", "distilled")),
    *(f"ppim-{name}" for name in ("plain", "distilled")),
]
#: what a refused model lacks, where it is not simply the form
REASONS = {
    "timm-average": "it has no prefix token",
    "timm-average-registers": r"the model pools over all tokens \(global_pool='avg'\)",
    "timm-map": "it has no prefix token",
    "timm-diff": r"its attention is a timm\.layers\.diff_attention\.DiffAttention, and the family",
    "timm-naflex": "it has no prefix token",
    **dict.fromkeys(
        [f"passl-{name}" for name in ("vit", "deit", "distilled", "mae", "mae-pooled")],
        r"which tokens are read after the blocks is not known for .*\(known: VisionTransformer",
    ),
    "open_clip-average": r"pools over all tokens, or returns them \(pool_type='avg'\)",
    "open_clip-all-tokens": r"pools over all tokens, or returns them \(pool_type='none'\)",
    "open_clip-attentional-pool": r"the model pools over all tokens \(an attentional pooler\)",
    "open_clip-cascade": r"the model pools over all tokens \(an attentional pooler\)",
    "open_clip-whole": r"which tokens .*ZeroShot reads of model\.clip\.visual is not known",
    "transformers-kosmos2": "which tokens are read after the blocks is not known for .*Kosmos2Vision",
    "transformers-siglip": "it has no prefix token",
    "passl-mae-pretraining": "which tokens are read after the blocks is not known for",
    "transformers-mae": r"which tokens are read .* is not known for .*ViTMAEModel \(known: ViTModel,",
    "transformers-ijepa": "IJepaForImageClassification pools over tokens",
    "transformers-dinov2": "Dinov2ForImageClassification pools over tokens",
    "transformers-dinov2-registers": "Dinov2WithRegistersForImageClassification pools over tokens",
}


def patched(case: Case, **settings: Any) -> Any:
    """The model of a case, its innermost known part patched: some cases wrap it to read one tensor."""
    model = case.model()
    wrapped = type(model).__name__ in ("Read", "Video", "Noiseless")
    case.fw.tome.apply_patch(model.model if wrapped else model, **settings)
    return model


def same(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_the_logits_and_gradients_are_the_same(name: str) -> None:
    case = case_named(name)
    fw = case.fw
    for r, prop_attn, batch in ((0, None, 3), (8, None, 1), ((12, -1.0), False, 3)):
        whole, trimmed = (
            patched(case, r=r, prop_attn=prop_attn, trim_last=trim) for trim in (False, True)
        )
        images = case.images(batch)
        same(fw.forward(trimmed, images), fw.forward(whole, images))
        x = fw.tensor(images)
        found = fw.gradients(trimmed, lambda m=trimmed, x=x: (m(x) ** 2).sum())
        expected = fw.gradients(whole, lambda m=whole, x=x: (m(x) ** 2).sum())
        assert found.keys() == expected.keys()
        largest = max(np.abs(value).max() for value in expected.values())
        for parameter, value in expected.items():
            assert np.abs(found[parameter] - value).max() <= 1e-11 * largest, parameter


@pytest.mark.parametrize("name", TAKEN)
def test_removed_without_a_trace(name: str) -> None:
    case = case_named(name)
    fw, model = case.fw, case.model()
    before, output = fw.fingerprint(model), fw.forward(model, case.images())
    inner = model.model if type(model).__name__ in ("Read", "Video") else model
    fw.tome.apply_patch(inner, r=8, trim_last=True)
    fw.forward(model, case.images())
    fw.tome.remove_patch(inner)
    assert fw.fingerprint(model) == before
    assert np.array_equal(fw.forward(model, case.images()), output)


OTHERS = [case.name for case in [*PLAIN, *MORE] if case.name not in TAKEN]


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_are_refused_and_left_alone(name: str) -> None:
    case = case_named(name)
    model = case.model()
    inner = model.model if type(model).__name__ in ("Read", "Video", "Noiseless") else model
    before = case.fw.fingerprint(model)
    reason = REASONS.get(
        name, r"tomecore has no form of its last block that computes only prefix tokens"
    )
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        case.fw.tome.apply_patch(inner, r=8, trim_last=True)
    assert str(caught.value).startswith(
        f"trim_last=True is not supported for this {type(inner).__name__} ("
    )
    assert case.fw.fingerprint(model) == before
