"""The rotations of merged tokens, on timm's attention modules and their own tables.

Tokens come in nearly equal pairs, whose positions are far apart. Attention over the merged pairs should equal
attention over all tokens, averaged over each pair. The mean of cos and sin, which ``merge_rotary_table``
returns, must be nearer to that than the position of one of the two tokens, and than
the mean angle (the mean rotation, normalised to a rotation).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tomecore.adapters.engine.positions import merge_rotary_table
from tomecore.adapters.torch import HOST
from vits.cases import case_named

GRID = 8
MODELS = {
    "EVA02": ("eva02_tiny_patch14_224", 14),
    "DINOv3": ("vit_small_patch16_dinov3", 16),
    "PE": ("vit_pe_core_tiny_patch16_384", 16),
    "RoPE-ViT": ("vit_small_patch16_rope_224", 16),
    "RoPE-ViT mixed": ("vit_small_patch16_rope_mixed_224", 16),
}


def pairs(apart: int, prefix: int) -> torch.Tensor:
    """Source map (1, N): each token of a grid's row is merged with the one ``apart`` to its right."""
    slots, free = [-1] * GRID**2, 0
    for place in range(GRID**2):
        if slots[place] < 0:
            mate = place + apart
            if place % GRID + apart >= GRID or slots[mate] >= 0:
                mate = place  # stays single
            slots[place] = slots[mate] = free
            free += 1
    return torch.tensor([[*range(prefix), *(slot + prefix for slot in slots)]])


def group_means(x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """(B, N, C) -> (B, n, C)."""
    groups = torch.zeros(int(source.max()) + 1, source.shape[1], dtype=x.dtype)
    groups[source[0], torch.arange(source.shape[1])] = 1
    return groups @ x / groups.sum(1, keepdim=True)


def renormalised(table: torch.Tensor) -> torch.Tensor:
    """The mean angle: sin and cos of length 1 again."""
    sin, cos = table.chunk(2, -1)
    length = (sin**2 + cos**2).sqrt()
    return torch.cat([sin / length, cos / length], dim=-1)


@pytest.mark.parametrize("apart", [1, 3])
@pytest.mark.parametrize(("name", "patch"), MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_the_mean_of_cos_and_sin_is_the_nearest(name, patch, apart):
    torch.manual_seed(0)
    model = timm.create_model(name, depth=1, img_size=GRID * patch).eval().double()
    attn, prefix = model.blocks[0].attn, model.num_prefix_tokens
    for module in attn.modules():
        if isinstance(module, nn.Linear):  # scores of a spread that attends to something
            nn.init.normal_(module.weight, std=1.7 * module.in_features**-0.5)
    table = model.rope.get_embed(shape=(GRID, GRID)).double()
    table = table[0] if table.ndim == 4 else table

    source = pairs(apart, prefix)
    n0, n = source.shape[1], int(source.max()) + 1
    alike = torch.randn(4, n, model.embed_dim, dtype=torch.float64)
    x = alike[:, source[0]] + 0.05 * torch.randn(4, n0, model.embed_dim, dtype=torch.float64)
    sizes = source[0].bincount().float().expand(4, -1)
    run: Any = SimpleNamespace(
        history=None, num_tokens=n0, width=n, sizes=sizes, source=source.expand(4, -1), valid=None
    )
    bias = sizes.log().double()[:, None, None]
    merged, expected = group_means(x, source), group_means(attn(x, rope=table), source)

    def error(rows: torch.Tensor) -> float:
        got = attn(merged, rope=rows, attn_mask=bias)
        return float((got - expected).norm() / expected.norm())

    mean = merge_rotary_table(HOST, table, run)
    last = [int((source[0] == slot).nonzero()[-1]) - prefix for slot in range(prefix, n)]
    kept = error(table[..., last, :])
    angle, ours = error(renormalised(mean)), error(mean)
    assert ours < angle < kept
    assert ours < 0.75 * kept


@torch.no_grad()
def test_tables_of_every_shape_merge_alike():
    case = case_named("timm-eva02")
    model, images = case.patched(r=8), case.images()
    x = case.entering(model, images)
    table = model.rope.get_embed().double()
    outputs = []
    for rows in (
        table,
        table.expand(4, -1, -1),
        table.expand(3, 1, -1, -1),
        table.expand(3, 4, -1, -1),
        table.expand(1, 4, -1, -1),
    ):
        y = x.clone()
        for block in model.blocks:
            y = block(y, rope=rows)
        outputs.append(y)
    assert model.tome.tokens == [57, 49, 41, 33]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=1e-12)
