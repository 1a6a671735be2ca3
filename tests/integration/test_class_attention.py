"""The attention of the class token on every family there is, against the libraries' own attention maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from adapters import explicit
from adapters.cases import Case
from adapters.frameworks import TORCH
from test_trim_last_families import TAKEN
from vits.cases import MORE, PLAIN, case_named
from vits.of_open_clip import openai_model

import tomecore.adapters.torch as tome
from tomecore.adapters.engine.class_attention import check_class_attention, weights_and_values
from tomecore.adapters.engine.spec import attribute
from tomecore.errors import UnsupportedModelError

torch.set_num_threads(1)

#: models whose last block cannot be trimmed, because of the modules after the blocks
ALSO = [
    "timm-average-registers",
    *(f"passl-{name}" for name in ("vit", "deit", "distilled", "mae", "mae-pooled")),
    "passl-mae-pretraining",
    *(f"transformers-{name}" for name in ("mae", "dinov2", "dinov2-registers")),
    *(f"open_clip-{name}" for name in ("average", "all-tokens", "attentional-pool", "cascade")),
    "open_clip-whole",
]
AVAILABLE = [*TAKEN, *ALSO]


def class_attention(*args: Any) -> torch.Tensor:
    return weights_and_values(*args)[0]


def parts(case: Case, model: Any) -> tuple[Any, Any, Any]:
    """The spec, the tower and the second block of an unpatched model."""
    block = case.blocks(model)[1]
    for _, module in case.fw.tome.HOST.named_modules(model):
        for spec in case.fw.tome.SPECS:
            if spec.is_block(block) and spec.is_tower(module) and block in spec.block_list(module):
                return spec, module, block
    raise AssertionError(f"no spec for {case.name}")


def own_weights(attention: Any, y: torch.Tensor, bias: torch.Tensor, given: Any) -> torch.Tensor:
    """(B, H, N, N) of the library's own attention."""
    if isinstance(attention, torch.nn.MultiheadAttention):
        attention.batch_first = True
        options = {"key_padding_mask": bias[:, 0, 0], "average_attn_weights": False}
        return attention(y, y, y, **options)[1]
    attention.config._attn_implementation = "eager"
    return attention(y, attention_mask=bias, **given)[1]


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_weights_are_those_of_the_library(name: str) -> None:
    case = case_named(name)
    fw, model = case.fw, case.model()
    spec, tower, block = parts(case, model)
    check_class_attention(fw.tome.HOST, spec, tower, block)
    x = case.entering(model, case.images())
    given = {name: value for name, value in case.arguments(model, x).items() if value is not None}
    sizes = np.random.default_rng(0).integers(1, 9, fw.numpy(x).shape[:2]).astype(np.float64)
    bias = fw.tensor(np.log(sizes)[:, None, None])
    found = fw.numpy(class_attention(fw.tome.HOST, spec, block, x, bias, given))
    if hasattr(attribute(block, spec.anatomy.attention), "qkv"):
        expected = explicit.class_attention(fw, block, fw.numpy(x), sizes)
    else:
        y = attribute(block, spec.anatomy.norm)(x)
        attention = attribute(block, spec.anatomy.attention)
        expected = fw.numpy(own_weights(attention, y, bias, given).mean(1)[:, 0])
    eager = name.startswith("transformers")  # whose softmax is in float32
    limit = 1e-5 if case.rounds else 1e-7 if eager else 1e-13
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_halves_of_all_tokens_and_of_the_first_agree(name: str) -> None:
    """For the first rows, ``attend`` computes the same as for all rows."""
    case = case_named(name)
    fw, model = case.fw, case.model()
    spec, _, block = parts(case, model)
    x = case.entering(model, case.images())
    given = case.arguments(model, x)
    sizes = np.random.default_rng(0).integers(1, 9, fw.numpy(x).shape[:2]).astype(np.float64)
    bias = fw.tensor(np.log(sizes)[:, None, None])
    halves = []
    for rows in ((), (1,), (None,)):
        half = spec.attend(fw.tome.HOST, block, x, bias, given, *rows)
        halves.append(fw.numpy(half[0] if isinstance(half, tuple) else half))
    whole, first, again = halves
    assert np.array_equal(whole, again)
    assert first.shape == (whole.shape[0], 1, whole.shape[2])
    limit = (2e-5 if case.rounds else 1e-12) * np.abs(whole).max()
    np.testing.assert_allclose(first, whole[:, :1], rtol=0, atol=limit)


@pytest.mark.parametrize("name", [c.name for c in [*PLAIN, *MORE] if c.name not in AVAILABLE])
def test_the_others_are_refused(name: str) -> None:
    case = case_named(name)
    spec, tower, block = parts(case, case.model())
    reason = "no anatomy of the attention of|it has no class token|its attention"
    with pytest.raises(UnsupportedModelError, match=f"for this .*: .*({reason})"):
        check_class_attention(case.fw.tome.HOST, spec, tower, block)


def test_openai() -> None:
    """Its blocks get the tokens before the images; the engine turns them before it asks."""
    model = TORCH.prepare(openai_model().CLIP(16, 32, 4, 64, 4, 8, 50, 64, 1, 2).visual).float()
    (spec,) = (s for s in tome.SPECS if s.is_tower(model))
    block = model.transformer.resblocks[1]
    width = block.attn.embed_dim
    x = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(0))
    bias = torch.arange(1.0, 19).reshape(2, 1, 1, 9).log()
    found = class_attention(tome.HOST, spec, block, x, bias, {})
    expected = own_weights(block.attn, block.ln_1(x), bias, {}).mean(1)[:, 0]
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("change", ["forward", "hook"])
def test_another_attention_after_the_patch_is_refused_when_it_is_read(change: str) -> None:
    """The library's attention is called, and so the model runs; but its anatomy gives other weights."""
    case = case_named("transformers-vit")
    model = tome.apply_patch(case.model(), r=1, matching="evit")
    case.fw.forward(model, case.images())
    attention = attribute(case.blocks(model)[0], "attention")
    inner = attention.forward
    if change == "forward":
        attention.forward = lambda y, *args, **kwargs: inner(5 * y, *args, **kwargs)
    else:
        attention.register_forward_pre_hook(lambda module, args: (5 * args[0], *args[1:]))
    text = (
        r"matching='evit' reads the attention of .*, which is not available: attention \(.* "
        r"which the attention of the class token does not call"
    )
    with pytest.raises(UnsupportedModelError, match=text):
        case.fw.forward(model, case.images())
    tome.apply_patch(model, matching="tome")
    case.fw.forward(model, case.images())
