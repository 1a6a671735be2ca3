"""Train with token merging: fine-tune a trained ViT with the r that it will run with, in PyTorch.

It starts from the digits model that comes with tomecore, which was trained without merging. For each target
speed-up it prints the accuracy of the pretrained model, and the accuracy after a short fine-tuning with
merging. The unpatched model is fine-tuned too, because more training can help by itself. finetune_paddle.py
does the same in Paddle, with the same images in the same order.

    python examples/finetune_torch.py --json finetune.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import tomecore.adapters.torch as tome
from tomecore import digits, loading, schedule
from tomecore.frameworks import predict

TOKENS = 197  # 14 x 14 patches and the class token


def finetune(model: torch.nn.Module, images, labels, *, epochs, batch, lr, seed) -> None:
    """Train as usual: merging in the forward pass changes nothing here."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = max(1, len(images) // batch)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    order = np.random.RandomState(seed)
    model.train()
    for _ in range(epochs):
        rows = order.permutation(len(images))
        for step in range(steps):
            picked = rows[step * batch : (step + 1) * batch]
            logits = model(torch.from_numpy(images[picked]))
            loss = F.cross_entropy(logits, torch.from_numpy(labels[picked]), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            slower.step()
    model.eval()


def accuracy(model: torch.nn.Module, images, labels) -> float:
    return float((predict(model, images).argmax(-1) == labels).mean())


def run(speedups, rule, train, test, **settings) -> list[dict]:
    """Return one row for the unpatched model and one for each target speed-up (by operation count)."""
    rows = []
    for speedup in (1.0, *speedups):
        model = loading.load("digits:torch").model
        patched = speedup > 1
        if patched:
            tome.apply_patch(model)
            model.r = schedule.for_speedup(model, speedup, rule)
        shelf = accuracy(model, *test)
        merged, left = (model.tome.schedule, model.tome.tokens[-1]) if patched else ([], TOKENS)
        finetune(model, *train, **settings)
        tuned = accuracy(model, *test)
        rows.append(
            {
                "speedup": speedup,
                "r": merged,
                "tokens_left": left,
                "off_the_shelf": shelf,
                "finetuned": tuned,
            }
        )
        name = "unpatched" if not patched else f"{speedup:g}x"
        print(f"{name:>9}  {left:11}  {shelf:13.2%}  {tuned:9.2%}", flush=True)
    return rows


def write(path: Path, found: dict) -> None:
    """Add ``found``, by framework, to the contents of the file."""
    before = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**before, **found}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.5, 2.0, 5.0, 8.0])
    parser.add_argument("--rule", help="of for_speedup: ratio (the default), constant or early")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="number of images for training, and for testing")
    parser.add_argument("--json", type=Path, help="add all numbers to this file")
    args = parser.parse_args(arguments)
    train, test = (
        [array[: args.images] for array in digits.load(split)] for split in ("train", "test")
    )
    settings = {"epochs": args.epochs, "batch": args.batch, "lr": args.lr, "seed": args.seed}
    print(f"{len(train[0])} digits to train on, {len(test[0])} held out")
    print("           tokens left  off the shelf  finetuned")
    rows = run(args.speedups, args.rule, train, test, **settings)
    if args.json:
        made = {"version": torch.__version__, "images": len(test[0]), **settings, "rows": rows}
        write(args.json, {"torch": made})


if __name__ == "__main__":
    main()
