"""Merge tokens in your own ViT: describe its block once, and ``apply_patch`` works as usual.

python examples/custom_block.py
"""

import torch
from torch import nn

import tomecore.adapters.torch as tome
from tomecore.adapters import Spec


class MyAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in "qkv")

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).flatten(2)


class MyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_a, self.norm_b = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MyAttention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm_a(x))
        return x + self.mlp(self.norm_b(x))


class MyViT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 6, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(MyBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


# What tomecore needs: the halves of the block, the module that returns the key, the number of prefix tokens.


def attend(host, block, x, bias, given):  # bias: (B, 1, 1, n), to be added to the attention scores
    return x + block.attention(block.norm_a(x), mask=bias)


def feed(block, x):
    return x + block.mlp(block.norm_b(x))


def prefix(tower):  # the class token
    return 1


SPEC = Spec(
    family="MyViT",
    blocks=(MyBlock,),
    towers={MyViT: "layers"},
    children=dict.fromkeys(("norm_a", "attention", "norm_b", "mlp"), ("*",)),
    attend=attend,
    feed=feed,
    key="attention.k",  # its output is the key, (B, N, heads * D)
    prefix=prefix,
)


def main() -> None:
    torch.manual_seed(0)
    model, images = MyViT().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        tome.register(SPEC)
        tome.apply_patch(model)
        print("r = 0 changes nothing:", torch.equal(model(images), before))
        model.r = 8
        after = model(images)
    print("tokens after each layer:", model.tome.tokens)
    print("largest change of a logit:", round(float((after - before).abs().max()), 4))


if __name__ == "__main__":
    main()
