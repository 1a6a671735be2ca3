"""Dense features from a merging ViT: a feature map with one feature per patch, as for segmentation.

With restore=True, the default, the last block returns all tokens, and model.tome.grid arranges them as in the
image: (B, C, height, width). So a head that was trained on the features of the unpatched model still works.
The head here is linear and predicts which patches contain ink. The script prints its accuracy for several r.

    python examples/dense_features.py --framework torch
"""

import argparse

import numpy as np

from tomecore import digits, loading
from tomecore.frameworks import evaluating, to_numpy, to_tensor
from tomecore.loading import adapter_of


def features(model, images: np.ndarray) -> np.ndarray:
    """Return the features of every patch after the last block and norm, (B, C, 14, 14)."""
    with evaluating(model):
        tokens = model.forward_features(to_tensor(model, images))
        return to_numpy(model.tome.grid(tokens))


def middle_features(model, images: np.ndarray, layer: int) -> np.ndarray:
    """Return the same after an intermediate block, with a hook; in all_tokens() it gets every token."""
    found = []

    def keep(block, inputs, output):
        found.append(output)

    add = "register_forward_hook" if hasattr(model, "register_forward_hook") else None
    hook = getattr(model.blocks[layer], add or "register_forward_post_hook")(keep)
    try:
        with evaluating(model), model.tome.all_tokens():
            model(to_tensor(model, images))
            return to_numpy(model.tome.grid(found[0]))
    finally:
        hook.remove()


def ink(images: np.ndarray) -> np.ndarray:
    """Return the target, (B, 14, 14) bool: the patches whose mean is above that of all pixels."""
    side = digits.DIGITS_VIT["patch_size"]
    b, _, height, width = images.shape
    patches = images.reshape(b, height // side, side, width // side, side).mean((2, 4))
    return patches > 0.0


def rows_of(maps: np.ndarray) -> np.ndarray:
    """Flatten maps to one row for every patch, with a column of ones: (B, C, H, W) -> (B H W, C + 1)."""
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])
    return np.concatenate([rows, np.ones((len(rows), 1), rows.dtype)], axis=1)


def fit(maps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Fit a linear head with outputs -1 and 1, by ridge regression."""
    x, y = rows_of(maps).astype(np.float64), np.where(target.ravel(), 1.0, -1.0)
    return np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=("torch", "paddle"), default="torch")
    parser.add_argument(
        "--images", type=int, default=64, help="number of images for fitting, and for testing"
    )
    args = parser.parse_args(arguments)
    train, test = (digits.load(split)[0][: args.images] for split in ("train", "test"))

    model = loading.load(f"digits:{args.framework}").model
    model = adapter_of(args.framework).apply_patch(model)
    head = fit(features(model, train), ink(train))  # r = 0: the unpatched model's features
    whole = features(model, test)
    print(f"features after the last block: {whole.shape}")
    print("      r  tokens left  patches with the right answer")
    for r in (0, 8, 13, 15):
        model.r = r
        said = rows_of(features(model, test)) @ head > 0
        print(f"{r!s:>8}  {model.tome.tokens[-1]:10}  {np.mean(said == ink(test).ravel()):9.2%}")
    print(f"features after block 5: {middle_features(model, test[:8], 5).shape}")


if __name__ == "__main__":
    main()
