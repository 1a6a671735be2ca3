"""The cost of merging in Paddle, compared with the form of ToMe's published text, at ViT-S/16 shapes.

Two ways to match the most similar tokens and merge them take turns on the same arrays. tomecore's uses
compiled kernels if there are any, and otherwise index arrays and flat rows. The published text and its ports
use strided slices, two sorts and ``put_along_axis``. The script also reports their share of a whole forward
pass, the time measured within the patched model, and the model compared with the unpatched one and free-drop.
Only ratios within a run are meaningful on a shared machine.

    python benchmarks/paddle_merge.py --json benchmarks/results/paddle-merge-cpu.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

import tomecore.adapters.paddle as tome
from tomecore import benchmark
from tomecore.backends import Keys
from tomecore.benchmark import machine
from tomecore.core.merging import weighted_mean
from tomecore.matching.bipartite import match_bipartite
from tomecore.models.paddle import VisionTransformer

VIT_S = {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
HEAD = 64


def strided(key: Any, x: Any, size: Any, r: int) -> tuple[Any, Any]:
    """Match and merge on strided slices, adding in place: slow here, and it cannot be trained.

    It overwrites ``x`` or ``size`` if that is an intermediate value of the caller.
    """
    key = key.mean(axis=2)
    key = key / key.norm(axis=-1, keepdim=True)
    scores = paddle.matmul(key[:, ::2], key[:, 1::2], transpose_y=True)
    scores[:, 0] = -math.inf
    best, partner = scores.max(axis=-1), scores.argmax(axis=-1)
    order = paddle.argsort(best, axis=-1, descending=True).unsqueeze(-1)
    gone, stay = order[:, :r], paddle.sort(order[:, r:], axis=1)
    into = paddle.take_along_axis(partner.unsqueeze(-1), gone, axis=1)

    def merge(values: Any) -> Any:
        even, odd = values[:, ::2], values[:, 1::2]
        batch, count, width = even.shape
        kept = paddle.take_along_axis(even, stay.expand([batch, count - r, width]), axis=1)
        lost = paddle.take_along_axis(even, gone.expand([batch, r, width]), axis=1)
        odd.put_along_axis_(into.expand([batch, r, width]), lost, 1, reduce="add")
        return paddle.concat([kept, odd], axis=1)

    x = merge(x * size)
    size = merge(size)
    return x / size, size


def flat(key: Any, x: Any, size: Any, r: int) -> tuple[Any, Any]:
    """Match and merge as tomecore does in a patched block: with compiled kernels, or with calls."""
    backend = tome.HOST.backend()
    found = backend.fused(Keys(key, 2, key.shape[2]), x, size[:, :, 0], None, r, 1)
    if found is not None:
        return found.x, found.sizes.unsqueeze(-1)
    plan = match_bipartite(backend, backend.xp.sum(key, axis=2), r, 1, None)
    x, size = weighted_mean(plan, x, size[:, :, 0])
    return x, size.unsqueeze(-1)


FORMS: dict[str, Callable[..., tuple[Any, Any]]] = {"flat": flat, "strided": strided}


def layers(batch: int, width: int, counts: list[int]) -> list[tuple[Any, Any, Any]]:
    """Return (keys of each head, x, size) as each layer receives them; all sizes are 1."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return paddle.to_tensor(generator.standard_normal(shape).astype("float32"))

    return [
        (normal(batch, n, width // HEAD, HEAD), normal(batch, n, width), paddle.ones([batch, n, 1]))
        for n in counts
    ]


def all_layers(form: Callable[..., Any], inputs: list[Any], r: int) -> Callable[[], None]:
    def call() -> None:
        for key, x, size in inputs:
            form(key, x, size.clone(), r)

    return call


class Clocked:
    """The reduction of a patched model, with its time: everything from keys to tokens."""

    def __init__(self, reduce: Callable[..., Any]) -> None:
        self.reduce = reduce
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        found = self.reduce(*args)
        self.seconds += time.perf_counter() - start
        return found


def measure(batch: int, r: int, rounds: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Measure everything in turn, ``rounds`` times."""

    def fresh() -> VisionTransformer:
        model = VisionTransformer(class_num=1000, qkv_bias=True, **sizes)
        model.eval()
        return model

    unpatched, merging = fresh(), tome.apply_patch(fresh(), r=r)
    dropping = benchmark.free_drop(tome.apply_patch(fresh(), r=r))
    images = paddle.randn([batch, 3, sizes["img_size"], sizes["img_size"]])
    tokens = unpatched.patch_embed.num_patches + 1
    with paddle.no_grad():
        merging(images)
        after = merging.tome.tokens
        counts = [n for n, m in zip([tokens, *after[:-1]], after, strict=True) if n - m == r]
        inputs = layers(batch, sizes["embed_dim"], counts)
        calls: dict[str, Callable[[], Any]] = {
            "unpatched": lambda: unpatched(images),
            "merging": lambda: merging(images),
            "dropping": lambda: dropping(images),
            **{name: all_layers(form, inputs, r) for name, form in FORMS.items()},
        }
        config = merging.tome._config
        config.reduce = clocked = Clocked(config.reduce)
        timed, shares = [], []
        for seconds in benchmark.interleave(calls, rounds):
            timed.append(seconds)
            shares.append(clocked.seconds / seconds["merging"])
            clocked.seconds = 0.0
    return {
        "model": sizes,
        "batch": batch,
        "r": r,
        "rounds": rounds,
        "median_seconds": {name: statistics.median(t[name] for t in timed) for name in calls},
        "least_seconds": {name: min(t[name] for t in timed) for name in calls},
        "speedup": benchmark.median_ratio(timed, "unpatched", "merging"),
        "limit": merging.tome.arithmetic.limit(tokens, r),
        "free_drop_share": benchmark.median_ratio(timed, "dropping", "merging"),
        "merge_share": benchmark.median_ratio(timed, "flat", "merging"),
        "strided_over_flat": benchmark.median_ratio(timed, "strided", "flat"),
        "merge_share_if_strided": statistics.median(
            t["strided"] / (t["merging"] - t["flat"] + t["strided"]) for t in timed
        ),
        # Within the model, keys are a slice of qkv, which the mean over heads copies, and tokens are followed
        # so that they can be restored. The first round also counts the warm-up.
        "share_of_all_between_keys_and_tokens": statistics.median(shares[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cell = measure(arguments.batch, arguments.r, arguments.rounds, VIT_S)
    for name, seconds in cell["median_seconds"].items():
        print(
            f"{name:10s} {1000 * seconds:8.1f} ms   least {1000 * cell['least_seconds'][name]:.1f}"
        )
    print(
        f"match and merge: {cell['merge_share']:.1%} of a forward; strided "
        f"{cell['strided_over_flat']:.1f}x as long, it would be {cell['merge_share_if_strided']:.1%}"
    )
    everything = cell["share_of_all_between_keys_and_tokens"]
    print(
        f"with the mean of keys over heads within the model, and following tokens: {everything:.1%}"
    )
    print(
        f"speed-up {cell['speedup']:.2f}x, limit {cell['limit']:.2f}x, "
        f"{cell['free_drop_share']:.1%} of free-drop"
    )
    if arguments.json:
        text = json.dumps({"machine": machine(), **cell}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
