"""Global attention over the frames of a scene, on merged tokens, as FastVGGT merges those of VGGT.

In a block of global attention every token of every frame attends to all others, so its cost grows with the
square of the number of frames. Here queries, keys and values are merged by one plan, attention runs on the
tokens that are left, and every token gets the output of the token it was merged into. The first frame, to
which the others are aligned, keeps all of its tokens. The other frames keep one patch in each cell, their
prefix tokens (camera and registers), and every tenth token.

    python examples/vggt_global_attention.py --frames 12
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import tomecore as tc
from tomecore.matching import partitions


class FrameMatching:
    """Chooses, from the tokens of all frames (B, N, C), which merge: the rule of FastVGGT.

    The numbers of the tokens that may merge depend on the shapes only, so they are computed once.
    """

    def __init__(self, frames: int, grid: tuple[int, int], prefix: int, seed: int = 33) -> None:
        tokens = frames * (prefix + grid[0] * grid[1])
        sources, self.destinations = partitions.partition_frames(
            frames, grid, (2, 2), seed=seed, prefix=prefix, merge_into_prefix=True
        )
        self.sources = np.setdiff1d(sources, np.arange(0, tokens, 10))

    def __call__(self, x: Tensor) -> tc.MergePlan:
        return tc.partition_matching(x, self.sources, self.destinations)


class GlobalAttention(nn.Module):
    """The attention half of a block: norm, attention with norms of queries and keys, and LayerScale."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)
        self.proj = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, match: FrameMatching | None = None) -> Tensor:
        """Tokens of all frames (B, N, C) in, the same out; they merge in between if ``match`` is given."""
        y = self.norm(x)
        q, k, v = (one.unflatten(-1, (self.heads, -1)) for one in self.qkv(y).chunk(3, dim=-1))
        # A model with rotary positions turns q and k here, before they merge.
        q, k, v = (one.flatten(-2) for one in (self.q_norm(q), self.k_norm(k), v))
        if match is None:
            return x + self.scale * self.proj(self.attend(q, k, v))
        plan = match(y)
        merged = self.attend(plan.merge(q), plan.merge(k), plan.merge(v))
        return x + self.scale * self.proj(plan.unmerge(merged))

    def attend(self, *qkv: Tensor) -> Tensor:
        heads = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in qkv)
        return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(-2)


def scene(frames: int, grid: tuple[int, int], prefix: int, width: int) -> Tensor:
    """Tokens (1, N, C) of a smooth pattern that drifts from frame to frame; neighbours are similar."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.rand(3, width, generator=generator) * 0.4
    phase = torch.rand(width, generator=generator) * 2 * torch.pi
    axes = torch.arange(frames), torch.arange(grid[0]), torch.arange(grid[1])
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(waves.dtype)
    patches = torch.sin(places.flatten(1, 2) @ waves + phase)
    front = torch.randn(prefix, width, generator=generator).expand(frames, -1, -1)
    return torch.cat([front, patches], dim=1).flatten(0, 1)[None]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument(
        "--grid", type=int, nargs=2, default=(14, 14), help="patches: height, width"
    )
    parser.add_argument(
        "--prefix", type=int, default=5, help="camera and register tokens of a frame"
    )
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    block = GlobalAttention(width=128, heads=4).eval()
    x = scene(args.frames, tuple(args.grid), args.prefix, width=128)
    match = FrameMatching(args.frames, tuple(args.grid), args.prefix)
    with torch.no_grad():
        plan = match(block.norm(x))
        change, wanted = block(x, match) - x, block(x) - x
    print(f"{plan.num_tokens} tokens, {plan.num_slots} while they attend")
    print(f"pairs in attention: {(plan.num_slots / plan.num_tokens) ** 2:.1%}")
    likeness = functional.cosine_similarity(change, wanted, dim=-1).mean().item()
    print(f"cosine of the block's change with and without merging: {likeness:.3f}")


if __name__ == "__main__":
    main()
