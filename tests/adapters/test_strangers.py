"""Blocks that tomecore has never read: what merging would make wrong is refused, all else merges right.

Each kind is a pre-norm block with timm's names, and one thing in it that is its own.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import tomecore.adapters.torch as tome
from tomecore.adapters.engine import verify
from tomecore.adapters.families.structural import PRE_NORM
from tomecore.errors import UnsupportedModelError

WIDTH, HEADS = 16, 2


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; ``scores`` is what kinds change."""

    dropout = 0.0

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(WIDTH // HEADS) for _ in range(2))

    def scores(self, scores):
        return scores

    def forward(self, x, attn_mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = self.scores(scores).softmax(-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def distance(scores):
    place = torch.arange(scores.shape[-1])
    return (place[:, None] - place).abs()


class Causal(Attention):
    def scores(self, scores):
        return scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), -1e9)


class Band(Attention):
    """Wider than the small numbers of tokens."""

    def scores(self, scores):
        return scores.masked_fill(distance(scores) > 20, -1e9)


class Windows(Attention):
    def scores(self, scores):
        window = torch.arange(scores.shape[-1]) // 49
        return scores.masked_fill(window[:, None] != window, -1e9)


class Positions(Attention):
    def scores(self, scores):
        return scores - 0.1 * distance(scores)


class LogScaled(Attention):
    """Sharper the more tokens there are."""

    def scores(self, scores):
        return scores * math.log(scores.shape[-1])


class OverTheBatch(Attention):
    def scores(self, scores):
        return scores - scores.mean(0, keepdim=True)


class CausalInTraining(Causal):
    def scores(self, scores):
        return super().scores(scores) if self.training else scores


class AttentionDropout(Attention):
    dropout = 0.2


class Gated(Attention):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, attn_mask=None):
        return self.gate(x).sigmoid() * super().forward(x, attn_mask)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def within(self, y):
        return y

    def forward(self, x):
        return self.down(self.within(functional.gelu(self.up(x))))


class Convolution(Mlp):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(24, 24, 3, padding=1, groups=24)

    def within(self, y):
        return y + self.conv(y.mT).mT


class GridConvolution(Mlp):
    """Over the grid after the class token, if there is one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def within(self, y):
        side = math.isqrt(y.shape[1] - 1)
        if side < 2 or side * side != y.shape[1] - 1:
            return y
        grid = y[:, 1:].mT.unflatten(2, (side, side))
        return torch.cat([y[:, :1], y[:, 1:] + self.conv(grid).flatten(2).mT], 1)


class WideGridWindows(Attention):
    """Windows of 7 x 7 on a grid of 14 x 14 after the class token, and on nothing else."""

    def scores(self, scores):
        if scores.shape[-1] != 197:
            return scores
        place = torch.arange(196)
        window = functional.pad(place // 98 * 2 + place % 14 // 7, (1, 0), value=-1)
        apart = (window[:, None] != window) & (window[:, None] >= 0) & (window >= 0)
        return scores.masked_fill(apart, -1e9)


class FarShift(Mlp):
    """Between tokens that are 50 apart."""

    def within(self, y):
        return torch.cat([y[:, 50:], y[:, :50]], 1) if y.shape[1] > 50 else y


class Shift(Mlp):
    def within(self, y):
        return torch.cat([y.roll(1, 1)[..., :8], y[..., 8:]], -1)


class Pooled(Mlp):
    def within(self, y):
        return y * y.mean(1, keepdim=True).sigmoid()


class Largest(Mlp):
    def within(self, y):
        return y - y.amax(1, keepdim=True)


class ResponseNorm(Mlp):
    def within(self, y):
        norm = y.norm(dim=1, keepdim=True)
        return y + y * norm / (norm.mean(-1, keepdim=True) + 1e-6)


class Counted(Mlp):
    def within(self, y):
        return y / y.shape[1]


class Numbered(Mlp):
    """A position of each token."""

    def within(self, y):
        return y + 0.01 * torch.arange(y.shape[1], dtype=y.dtype)[:, None]


class BatchNorm(Mlp):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(24)

    def within(self, y):
        return self.norm(y.mT).mT


class BatchNormAndDropout(BatchNorm):
    def within(self, y):
        return functional.dropout(super().within(y), 0.1, self.training)


class Gate(Mlp):
    """SwiGLU."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 24)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Dropout(Mlp):
    def within(self, y):
        return functional.dropout(y, 0.3, self.training)


class Routed(Mlp):
    """The channels of each token decide about it."""

    def within(self, y):
        return torch.where(y.sum(-1, keepdim=True) > 0, y, -y)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        return x * self.scale


class DropPath(nn.Module):
    def forward(self, x):
        keep = torch.rand(len(x), 1, 1, dtype=x.dtype) < 0.8
        return x * keep / 0.8 if self.training else x


class Block(nn.Module):
    def __init__(self, attention=Attention, mlp=Mlp, norm=nn.LayerNorm, more=None):
        super().__init__()
        self.norm1, self.attn = norm(WIDTH), attention()
        self.norm2, self.mlp = norm(WIDTH), mlp()
        for name in () if more is None else ("1", "2"):
            self.add_module({Scale: "ls", DropPath: "drop_path"}[more] + name, more())

    def own(self, x, number):
        for name in ("ls", "drop_path"):
            x = getattr(self, name + number, lambda x: x)(x)
        return x

    def forward(self, x):
        x = x + self.own(self.attn(self.norm1(x)), "1")
        return x + self.own(self.mlp(self.norm2(x)), "2")


class Tower(nn.Module):
    num_prefix_tokens = 1

    def __init__(self, **kinds):
        super().__init__()
        self.blocks = nn.ModuleList(Block(**kinds) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


WRONG = {
    "causal": ({"attention": Causal}, verify.ORDER),
    "band": ({"attention": Band}, verify.ORDER),
    "windows": ({"attention": Windows}, verify.ORDER),
    "windows on a grid": ({"attention": WideGridWindows}, verify.ORDER),
    "positions": ({"attention": Positions}, verify.ORDER),
    "causal in training": ({"attention": CausalInTraining}, verify.ORDER),
    "scaled by count": ({"attention": LogScaled}, verify.BIAS),
    "attention over the batch": ({"attention": OverTheBatch}, verify.SAMPLES),
    "convolution": ({"mlp": Convolution}, verify.MIXES),
    "grid convolution": ({"mlp": GridConvolution}, verify.MIXES),
    "shift": ({"mlp": Shift}, verify.MIXES),
    "far shift": ({"mlp": FarShift}, verify.MIXES),
    "pooled": ({"mlp": Pooled}, verify.MIXES),
    "maximum": ({"mlp": Largest}, verify.MIXES),
    "response norm": ({"mlp": ResponseNorm}, verify.MIXES),
    "divided by count": ({"mlp": Counted}, verify.MIXES),
    "numbered": ({"mlp": Numbered}, verify.MIXES),
    "batch norm": ({"mlp": BatchNorm}, verify.MIXES),
    "batch norm and dropout": ({"mlp": BatchNormAndDropout}, verify.MIXES),
}

RIGHT = {
    "plain": {},
    "layer scale": {"more": Scale},
    "drop path": {"more": DropPath},
    "attention dropout": {"attention": AttentionDropout},
    "dropout": {"mlp": Dropout},
    "gated attention": {"attention": Gated},
    "SwiGLU": {"mlp": Gate},
    "RMSNorm": {"norm": nn.RMSNorm},
    "routed": {"mlp": Routed},
}


def drawn(kinds):
    torch.manual_seed(0)
    model = Tower(**kinds).double().eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.4)
    return model


def tokens():
    """(2, 17, C): a prefix token, and 8 tokens, each twice: of one pair one is even and one odd."""
    torch.manual_seed(1)
    one = torch.randn(2, 8, WIDTH, dtype=torch.float64)
    return torch.cat([torch.randn(2, 1, WIDTH).double(), one.repeat_interleave(2, 1)], 1)


@pytest.mark.parametrize(("kinds", "reason"), WRONG.values(), ids=WRONG.keys())
def test_what_merging_would_make_wrong_is_refused(kinds, reason):
    model = drawn(kinds)
    with pytest.raises(UnsupportedModelError) as refused:
        tome.apply_patch(model)
    assert f"but {reason}" in str(refused.value)
    assert "see docs/how-to/your-own-blocks.md" in str(refused.value)


@pytest.mark.parametrize("kinds", RIGHT.values(), ids=RIGHT.keys())
def test_what_merges_right_is_accepted(kinds):
    plain, x = drawn(kinds), tokens()
    model = tome.apply_patch(copy.deepcopy(plain), r=[8, 0, 0])
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
    assert model.tome.tokens == [9, 9, 9]
    assert model.train()(x).shape == x.shape


class ClassTokenApart(Mlp):
    """Treats the first token in a way of its own."""

    def within(self, y):
        return torch.cat([2 * y[:, :1], y[:, 1:]], 1)


class ClassTokenTwice(Attention):
    def forward(self, x, attn_mask=None):
        y = super().forward(x, attn_mask)
        return torch.cat([2 * y[:, :1], y[:, 1:]], 1)


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ({"mlp": ClassTokenApart}, verify.MIXES),
        ({"attention": ClassTokenTwice}, verify.ORDER),
    ],
    ids=["mlp", "attention"],
)
def test_tokens_in_front_may_be_treated_in_a_way_of_their_own(kinds, reason):
    block = drawn(kinds).blocks[0]
    assert verify.why_not(tome.HOST, PRE_NORM, block, WIDTH, prefix=1) is None
    assert verify.why_not(tome.HOST, PRE_NORM, block, WIDTH) == reason


@pytest.mark.parametrize(
    "kinds",
    [{"mlp": GridConvolution}, {"attention": WideGridWindows}],
    ids=["convolution", "windows"],
)
@pytest.mark.parametrize("prefix", [None, 1])
def test_a_grid_is_found_with_and_without_the_number_of_tokens_in_front(kinds, prefix):
    block = drawn(kinds).blocks[0]
    assert verify.why_not(tome.HOST, PRE_NORM, block, WIDTH, prefix) in (
        verify.MIXES,
        verify.ORDER,
    )


def test_random_numbers_and_the_block_stay_as_they_are():
    block = drawn({"mlp": BatchNormAndDropout}).blocks[0]
    before, state = copy.deepcopy(block.state_dict()), torch.random.get_rng_state()
    assert verify.why_not(tome.HOST, PRE_NORM, block, WIDTH) is not None
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not block.training
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name
