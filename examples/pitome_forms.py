"""The forms of PiToMe that its published code takes, as matchings of a patched model.

    python examples/pitome_forms.py

The code has two forms and three ways to use them: it changes the form in the middle of DeiT and of MAE, and
has a fixed margin in AugReg. Each is a function of three lines or a ``functools.partial``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

import tomecore.adapters.torch as tome
from tomecore import MergePlan, matching
from tomecore.models.torch import VisionTransformer


def as_in_deit(keys: torch.Tensor, r: int, context: matching.Context) -> MergePlan:
    """Merge by "bsm" in the first half of the layers and by "pure" in the second."""
    early = context.layer < context.num_layers // 2
    return matching.pitome(keys, r, context, form="bsm" if early else "pure")


def as_in_mae(keys: torch.Tensor, r: int, context: matching.Context) -> MergePlan:
    """Merge by "pure" in the first half of the layers and by "bsm" in the second."""
    early = context.layer < context.num_layers // 2
    return matching.pitome(keys, r, context, form="pure" if early else "bsm")


FORMS: dict[str, Any] = {
    "bsm": matching.pitome,
    "as in DeiT": as_in_deit,
    "as in MAE": as_in_mae,
    "as in AugReg": functools.partial(matching.pitome, margin=0.9),
}


def main() -> None:
    """Print how far each form moves the logits of a small random model; such a model ranks nothing."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=64, patch_size=8, embed_dim=64, depth=4, num_heads=4).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for name, form in FORMS.items():
            tome.apply_patch(model, r=8, matching=form)
            moved = (model(images) - before).abs().max()
            print(f"{name:12s} {model.tome.tokens} tokens, logits moved by {moved:.3f}")


if __name__ == "__main__":
    main()
