"""Train the digits model that ships with the package: ``tomecore/models/data/digits_vit.safetensors``.

This is plain training without token merging. It takes about half an hour on two CPU cores. Most epochs run at
half the resolution (50 tokens instead of 197). Then the position embeddings are interpolated, and the model
finishes at full resolution. The test split is used once, after training, with the stored weights. To choose
settings, ``--validate`` holds out a part of the training split instead.

    python tools/train_digits.py
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tomecore.models import digits
from tomecore.models.torch import VisionTransformer, load_weights

BACKGROUND = -digits.MEAN / digits.STD


def augment(images: torch.Tensor, size: int) -> torch.Tensor:
    """Apply random rotation, scale, shear, shift and erasing: (B, 1, H, W) -> (B, 1, size, size)."""
    b = images.shape[0]

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(b) * 2 - 1) * limit

    angle, shear = uniform(math.radians(14)), uniform(0.15)
    scale_x, scale_y = torch.exp(uniform(0.18)), torch.exp(uniform(0.14))
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([cos * scale_x, (shear * cos - sin) * scale_y, uniform(0.2)], dim=1)
    row_y = torch.stack([sin * scale_x, (shear * sin + cos) * scale_y, uniform(0.14)], dim=1)
    grid = F.affine_grid(
        torch.stack([row_x, row_y], dim=1), [b, 1, size, size], align_corners=False
    )
    out = F.grid_sample(images - BACKGROUND, grid, align_corners=False) + BACKGROUND

    out = (out - BACKGROUND) * torch.exp(uniform(0.15)).view(b, 1, 1, 1) + BACKGROUND
    side = torch.rand(2, b) * 0.25 * (torch.rand(b) < 0.25)  # a quarter of the images
    centre, pixel = torch.rand(2, b), (torch.arange(size) + 0.5) / size
    inside = (pixel - centre[..., None]).abs() < side[..., None] / 2
    erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(erased, torch.tensor(BACKGROUND), out)


def at_full_resolution(small: VisionTransformer, large: VisionTransformer) -> None:
    """Copy the weights of ``small`` to ``large``, with interpolated position embeddings."""
    state = small.state_dict()
    prefix = small.num_prefix_tokens
    old, new = small.patch_embed.grid_size, large.patch_embed.grid_size
    grid = state["pos_embed"][:, prefix:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :prefix], grid], dim=1)
    large.load_state_dict(state)


def train(
    model: VisionTransformer,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    warmup: int,
    label: str,
) -> VisionTransformer:
    """Train for ``epochs`` epochs, and return the exponential moving average of the weights."""
    decay = [p for p in model.parameters() if p.ndim == 2 or p.ndim == 4]
    plain = [p for p in model.parameters() if p.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    average = copy.deepcopy(model).eval().requires_grad_(False)
    size = model.patch_embed.img_size[0]
    steps = len(images) // batch
    total, step, start = epochs * steps, 0, time.perf_counter()
    model.train()
    for epoch in range(epochs):
        order, loss_sum, hits = torch.randperm(len(images)), 0.0, 0
        for i in range(steps):
            ramp = min(1.0, (step + 1) / max(1, warmup * steps))
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = lr * ramp * max(cosine, 0.01)
            rows = order[i * batch : (i + 1) * batch]
            logits = model(augment(images[rows], size))
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            keep = min(0.995, step / (step + 10))
            with torch.no_grad():
                for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1 - keep)
            loss_sum += loss.item()
            hits += int((logits.argmax(1) == labels[rows]).sum())
        print(
            f"{label} epoch {epoch + 1}/{epochs}: loss {loss_sum / steps:.3f}, "
            f"accuracy on augmented training images {hits / (steps * batch):.3f}, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return average


@torch.no_grad()
def accuracy(model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of images that are classified correctly."""
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in images.split(64)])
    return int((found == labels).sum()) / len(labels)


def main() -> None:
    """Train the model, store it in float16, and report the accuracy of the stored weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--low-epochs", type=int, default=115, help="at 28x28")
    parser.add_argument("--high-epochs", type=int, default=20, help="at 56x56")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument(
        "--images", type=int, help="train on the first ones only, to try the script"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate", action="store_true", help="hold out a tenth of the training")
    parser.add_argument("--out", type=Path, default=digits.weights_path())
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)

    images, labels = (torch.from_numpy(a)[: args.images] for a in digits.load("train"))
    held = torch.arange(len(images)) % 10 == 0 if args.validate else torch.zeros(len(images)) > 0
    config = dict(digits.DIGITS_VIT)
    small = VisionTransformer(**{**config, "img_size": config["img_size"] // 2}, drop_path_rate=0.1)
    model = VisionTransformer(**config, drop_path_rate=0.1)
    start = time.perf_counter()
    data = (images[~held], labels[~held])
    small = train(
        small, *data, epochs=args.low_epochs, batch=args.batch, lr=1e-3, warmup=5, label="28x28"
    )
    at_full_resolution(small, model)
    model = train(
        model, *data, epochs=args.high_epochs, batch=args.batch, lr=5e-4, warmup=2, label="56x56"
    )
    minutes = (time.perf_counter() - start) / 60
    if args.validate:
        print(f"validation accuracy {accuracy(model, images[held], labels[held]):.4f}")
        return

    stored = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    final = VisionTransformer(**config)
    final.load_state_dict(stored)
    test = [torch.from_numpy(a) for a in digits.load("test")]
    result = accuracy(final, *test)
    made = (
        f"tools/train_digits.py --low-epochs {args.low_epochs} --high-epochs {args.high_epochs} "
        f"--batch {args.batch} --seed {args.seed}; torch {torch.__version__}, CPU, "
        f"{minutes:.0f} minutes; plain training, no token merging; float16"
    )
    metadata = {
        "config": json.dumps(config),
        "test_accuracy": f"{result:.4f}",
        "test_images": str(len(test[1])),
        "made": made,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, args.out, metadata=metadata)
    args.out.chmod(0o644)  # safetensors lets only the owner read it
    again = accuracy(load_weights(VisionTransformer(**config), args.out), *test)
    print(f"held-out accuracy {again:.4f} on {len(test[1])} images; wrote {args.out}; {made}")


if __name__ == "__main__":
    main()
