"""On a GPU with Paddle: does merging compute the right numbers, and how fast is it?

    python benchmarks/paddle_gpu.py --out results --seconds 480    # resume: --skip results/paddle_gpu.jsonl

It needs only Paddle and tomecore. Each result is a line of paddle_gpu.jsonl, which is on disk before the
next item begins. The exit status is 1 if a check failed.

In half precision, near-ties are decided differently, and images with different decisions cannot be compared.
So the device merges the tokens that the CPU merged in float64, and every block is compared with the CPU's,
image by image. The merge that the device would have chosen is compared with the definition, with its own
keys. Without a GPU, ``--device cpu --tiny`` runs everything, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

# The float32 of a GPU is TF32 unless this is set before CUDA starts.
os.environ |= {"NVIDIA_TF32_OVERRIDE": "0", "TOMECORE_KERNELS": "0"}

import numpy as np
import paddle
from gpu_results import Found, Item, attempt, commit, parser_of, run_items

import tomecore.adapters.paddle as tome
from tomecore import MergePlan, __version__, benchmark
from tomecore.adapters.engine.patch import config_of
from tomecore.adapters.engine.reduce import matching_key
from tomecore.adapters.engine.state import MergeHistory
from tomecore.core.merging import weighted_mean
from tomecore.models.paddle import VisionTransformer

FILE = "paddle_gpu.jsonl"
SIZES = {
    "tiny": {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
    "vit_s": {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_b": {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_l": {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
}
#: largest difference allowed, relative to the largest number: of attention, of merged tokens, of cosines,
#: and of blocks; if an unpatched model differs by more, three times its difference is allowed
LIMITS = {
    "float32": (1e-5, 1e-5, 1e-5, 1e-4),
    "float16": (1e-2, 2e-3, 1e-5, 1e-2),
    "bfloat16": (6e-2, 1.6e-2, 1e-5, 6e-2),
}
#: numbers of tokens for attention: some are multiples of 8, some are not
TOKENS = (197, 192, 184, 181, 168, 128, 9)
#: the schedules to check: some of their layers attend to a multiple of 8 tokens, some do not
CHECKED = {"tiny": (8, [1, 8, 16], [9, 15, 0]), "": (5, 13, 16, [5, 8, 3, 13, 40])}


def build(name: str, dtype: str, weights: Found | None = None) -> VisionTransformer:
    """Build a model in evaluation mode whose attention is not nearly uniform."""
    model = VisionTransformer(class_num=1000, qkv_bias=True, **SIZES[name]).to(dtype="float64")
    if weights is None:
        for block in model.blocks:
            block.attn.qkv.weight.set_value(block.attn.qkv.weight * 4)
    else:
        model.set_state_dict(weights)
    model.eval()
    return model.to(dtype=dtype)


def pictures(name: str, batch: int) -> np.ndarray:
    size = SIZES[name]["img_size"]
    return np.random.default_rng(0).standard_normal((batch, 3, size, size))


def difference(got: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest number expected; NaN if any number is NaN."""
    got, expected = (
        (x if isinstance(x, np.ndarray) else x.astype("float64").numpy()) for x in (got, expected)
    )
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def within(limit: float, **found: float) -> Found:
    """Return the results; raise if one is above the limit, or NaN."""
    for name, number in found.items():
        if not number <= limit:
            raise AssertionError(f"{name.replace('_', ' ')}: {number:.3g}, above {limit:.3g}")
    return found


class Merges:
    """Lets a patched model merge what another merged, and records what it would have merged itself.

    Args:
        model: patched.
        plans: of a run of another model, layer by layer; None: the model merges as it chooses.
    """

    def __init__(self, model: Any, plans: list[tuple[np.ndarray, ...]] | None = None) -> None:
        self.settings = config_of(model)
        self.merge, self.settings.reduce = self.settings.reduce, self
        self.settings.observers = (self.observe,)
        self.given = plans
        self.plans: list[tuple[np.ndarray, ...]] = []
        self.found: list[Found] = []
        self.blocks: list[np.ndarray] = []
        for block in self.settings.blocks:
            block.register_forward_post_hook(self.keep)

    def keep(self, block: Any, args: Any, output: Any) -> None:
        self.blocks.append(output.astype("float64").numpy())

    def observe(self, layer: int, key: Any, plan: MergePlan, sizes: Any, x: Any) -> None:
        self.plan = plan  # the run does not keep the plan if kernels merged

    def __call__(
        self, config: Any, block: Any, x: Any, keys: Any, run: Any, amount: int, entered: Any
    ) -> tuple[Any, Any]:
        tokens, after = self.merge(config, block, x, keys, run, amount, entered)
        plan = self.plan
        arrays = tuple(a.numpy() for a in (plan.kept, plan.merged, plan.into))
        key = matching_key(config, block, keys).numpy().astype("float64")
        self.found.append(held(arrays, key, x, run.sizes, tokens, after.sizes))
        layer = len(self.plans)
        self.plans.append(arrays)
        if self.given is None:
            return tokens, after
        plan = MergePlan(*(paddle.to_tensor(a, place=x.place) for a in self.given[layer]))
        tokens, sizes = weighted_mean(plan, x, run.sizes, False)
        return tokens, run.after_merge(sizes, MergeHistory(plan, run.history), None)


def held(
    plan: tuple[np.ndarray, ...], key: np.ndarray, x: Any, size: Any, tokens: Any, sizes: Any
) -> Found:
    """Compare a merge with the definition in float64; the class token comes first."""
    kept, merged, into = plan
    units = key / np.linalg.norm(key, axis=2, keepdims=True)
    best = np.sort((units[:, 2::2] @ units[:, 1::2].swapaxes(1, 2)).max(2))[:, ::-1]
    rows = np.arange(len(key))[:, None]
    taken = (units[rows, merged] * units[rows, np.take_along_axis(kept, into, 1)]).sum(2)
    x = x.astype("float64").numpy()
    weight = np.ones(x.shape[:2]) if size is None else size.numpy().astype("float64")
    owner = np.zeros((*x.shape[:2], kept.shape[1]))
    owner[rows, kept, np.arange(kept.shape[1])] = 1
    owner[rows, merged, into] = 1
    total = np.einsum("bn,bns->bs", weight, owner)
    mean = np.einsum("bn,bns,bnc->bsc", weight, owner, x) / total[:, :, None]
    return {
        "lost_cosine": float(np.abs(best[:, : taken.shape[1]].sum(1) - taken.sum(1)).max()),
        "merged_tokens": difference(tokens, mean),
        "sizes": float(np.abs(sizes.numpy() - total).max()),
    }


class Bench:
    """The checks and measurements on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.gpu = device.startswith("gpu")
        self.dtypes = list(LIMITS) if self.gpu else ["float32"]  # a CPU has no half precision
        self.reference: dict[str, Any] = {}

    def expected(self, name: str, batch: int, r: Any) -> Found:
        """Return the model in float64 on the CPU: weights, plans, blocks and logits."""
        key = f"{name} {batch} {r}"
        if key not in self.reference:
            paddle.set_device("cpu")
            paddle.seed(0)
            plain = build(name, "float64")
            watch = Merges(tome.apply_patch(plain, r=r))
            logits = plain(paddle.to_tensor(pictures(name, batch))).numpy()
            found = {"plans": watch.plans, "blocks": watch.blocks, "logits": logits}
            self.reference[key] = {**found, "weights": plain.state_dict()}
            paddle.set_device(self.device)
        return self.reference[key]

    def attention(self, dtype: str) -> Found:
        """Check the bias of sizes and of positions, as Paddle's kernels read it."""
        found, draw = {}, np.random.default_rng(0).standard_normal
        for tokens in TOKENS:
            for batch, rows, heads in ((1, tokens, 1), (3, tokens, 1), (3, tokens, 4), (3, 2, 1)):
                q, k, v = (
                    paddle.to_tensor(draw((batch, n, 4, 64))).astype(dtype)
                    for n in (rows, tokens, tokens)
                )
                sizes = np.random.default_rng(tokens).integers(1, 30, (batch, 1, 1, tokens))
                bias = np.log(sizes)
                if heads > 1:
                    bias = bias + draw((batch, heads, rows, tokens))
                bias = paddle.to_tensor(bias).astype(dtype)
                exact = attended(*(t.astype("float64").numpy() for t in (q, k, v, bias)))
                got = tome.HOST.attention(q, k, v, bias, dropout=0.0, scale=64**-0.5)
                name = f"{tokens} tokens, batch {batch}, {rows} queries, {heads} heads"
                found |= within(LIMITS[dtype][0], **{name: difference(got, exact)})
        return {"worst": max(found.values()), "limit": LIMITS[dtype][0]}

    def model(self, name: str, r: Any, dtype: str) -> Found:
        """Compare each block and the logits with the CPU, and each merge with its definition."""
        batch, (_, tokens, cosine, least) = 3, LIMITS[dtype]
        expected, plain = self.expected(name, batch, r), self.expected(name, batch, 0)
        x, off, merges = paddle.to_tensor(pictures(name, batch)).astype(dtype), [], []
        for how, exact in ((0, plain), (r, expected)):
            model = tome.apply_patch(build(name, dtype, expected["weights"]), r=how)
            watch = Merges(model, exact["plans"])
            logits = model(x)
            pairs = [*zip(watch.blocks, exact["blocks"], strict=True), (logits, exact["logits"])]
            off.append([difference(*pair) for pair in pairs])
            merges = watch.found
        limits = {"lost_cosine": cosine, "merged_tokens": tokens, "sizes": 0.0}
        found: Found = {"merges": len(merges)}
        for what, limit in limits.items():
            found |= within(limit, **{what: max(merge[what] for merge in merges)})
        for layer, (merging, unpatched) in enumerate(zip(off[1], off[0], strict=True)):
            where = f"block {layer}" if layer < len(off[0]) - 1 else "logits"
            found |= within(max(least, 3 * unpatched), **{where: merging})
        return found | {"unpatched": off[0]}

    def again(self, name: str, r: Any, dtype: str, deterministic: bool) -> Found:
        """Check that two forwards give the same bits, with and without Paddle's deterministic kernels.

        The flag must not make merging slow, so the time of the second forward is recorded.
        """
        self.set_deterministic(deterministic)
        model = tome.apply_patch(build(name, dtype), r=r)
        x = paddle.to_tensor(pictures(name, 3)).astype(dtype)
        first = model(x).astype("float32").numpy()
        start = time.perf_counter()
        second = model(x).astype("float32").numpy()
        took = time.perf_counter() - start
        self.set_deterministic(False)
        return {"milliseconds": 1e3 * took, **within(0.0, twice=difference(second, first))}

    def set_deterministic(self, on: bool) -> None:
        """Set Paddle's flag, which a Paddle without CUDA does not have."""
        if self.gpu:
            paddle.set_flags({"FLAGS_cudnn_deterministic": on})

    def static(self, name: str, r: Any) -> Found:
        """Check that a static graph computes the same as the model."""
        model = tome.apply_patch(build(name, "float32"), r=r)
        x = paddle.to_tensor(pictures(name, 3)).astype("float32")
        exact, size = model(x), SIZES[name]["img_size"]
        spec = [paddle.static.InputSpec([None, 3, size, size], "float32")]
        program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
        return within(1e-4, graph=difference(program(x), exact))

    def gradients(self, name: str, r: Any, dtype: str) -> Found:
        """Compare the gradients of the logits with the CPU; the device merges what the CPU merged."""
        expected, found = self.expected(name, 3, r), []
        for device, kind in (("cpu", "float64"), (self.device, dtype)):
            paddle.set_device(device)
            model = tome.apply_patch(build(name, kind, expected["weights"]), r=r)
            Merges(model, expected["plans"])
            with paddle.enable_grad():
                model(paddle.to_tensor(pictures(name, 3)).astype(kind)).square().mean().backward()
            gradients = [p.grad.astype("float64").numpy().ravel() for p in model.parameters()]
            found.append(np.concatenate(gradients))
        return within(3 * LIMITS[dtype][3], gradients=difference(found[1], found[0]))

    def speed(self, name: str, batch: int, r: Any, dtype: str, rounds: int) -> Found:
        """Time unpatched, merging and dropping in turn, and return the ratios within each round."""
        unpatched = build(name, dtype)
        merging = tome.apply_patch(build(name, dtype), r=r)
        dropping = benchmark.free_drop(tome.apply_patch(build(name, dtype), r=r))
        x = paddle.to_tensor(pictures(name, batch)).astype(dtype)

        def timed(model: Any) -> Callable[[], None]:
            def call() -> None:
                model(x)
                if self.gpu:
                    paddle.device.synchronize()

            return call

        models = {"unpatched": unpatched, "merging": merging, "dropping": dropping}
        calls = {form: timed(model) for form, model in models.items()}
        found = list(benchmark.interleave(calls, rounds))[rounds // 4 :]
        tokens = unpatched.patch_embed.num_patches + 1
        return {
            "rounds": len(found),
            "images_per_second": {
                call: batch / statistics.median(each[call] for each in found) for call in calls
            },
            "speedup": benchmark.median_ratio(found, "unpatched", "merging"),
            "limit": merging.tome.arithmetic.limit(tokens, r),
            "free_drop_share": benchmark.median_ratio(found, "dropping", "merging"),
        }

    def machine(self) -> Found:
        """Return the properties of the machine on which the numbers depend."""
        device = paddle.device.cuda.get_device_name() if self.gpu else "cpu"
        versions = {"paddle": paddle.__version__, "cuda": paddle.version.cuda()}
        return {"device": device, **commit(), **versions, "tomecore": __version__}


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Compute the attention of (B, n, H, D), by its definition."""
    q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def items(bench: Bench, given: argparse.Namespace) -> Iterator[Item]:
    """Return everything, in order: the machine, the checks, and the measurements."""
    yield Item("machine", 0, bench.machine)
    for dtype in bench.dtypes:
        yield Item(f"check attention {dtype}", 15, partial(bench.attention, dtype))
    small = given.models[0]
    checked = CHECKED["tiny" if small == "tiny" else ""]
    for r, dtype in product(checked, bench.dtypes):
        yield Item(f"check model r {r} {dtype}", 20, partial(bench.model, small, r, dtype))
    for deterministic in (False, True):
        name = "check deterministic" if deterministic else "check twice"
        for dtype in bench.dtypes:
            call = partial(bench.again, small, checked[0], dtype, deterministic)
            yield Item(f"{name} {dtype}", 10, call)
    yield Item("check static graph", 30, partial(bench.static, small, checked[0]))
    for dtype in bench.dtypes:
        call = partial(bench.gradients, small, checked[0], dtype)
        yield Item(f"check gradients {dtype}", 20, call)
    for name, batch, r, dtype in product(given.models, given.batches, given.r, bench.dtypes):
        call = partial(bench.speed, name, batch, r, dtype, given.rounds)
        yield Item(f"{name} batch {batch} r {r} {dtype}", 12, call)


def ran(item: Item) -> Found:
    """Run an item and return its line of the results."""
    with paddle.no_grad():
        return attempt(item)


def shown(line: Found) -> str:
    """Return a result in readable form, as one line."""
    start = f"{line['status']:8s}{line['name']:34s}"
    if "speedup" in line:
        share = f"{line['free_drop_share']:6.1%} of free-drop"
        return f"{start} {line['speedup']:5.2f}x of {line['limit']:5.2f}x, {share}"
    if "traceback" in line:
        return f"{start} {line['traceback'][-1][:190]}"
    return f"{start} {json.dumps({key: line[key] for key in list(line)[2:]})[:190]}"


def main(argv: list[str] | None = None) -> int:
    """Run everything that fits; return the exit status."""
    parser = parser_of((__doc__ or "").partition("\n")[0], FILE)
    parser.add_argument("--device", default="gpu:0", help="gpu:0, gpu:1 ... or cpu")
    parser.add_argument("--models", nargs="+", choices=SIZES, help="the checks use the first")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--r", nargs="+", type=int, default=[8, 13, 16])
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(argv)
    if given.tiny:
        given.batches, given.r, given.rounds = [2], [8], 4
    given.models = given.models or (["tiny"] if given.tiny else ["vit_s", "vit_b"])
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if given.device != "cpu" and not has_gpu:
        parser.error("Paddle finds no CUDA device here; without one: --device cpu --tiny")
    bench = Bench(given.device)
    paddle.set_device(bench.device)
    return run_items(items(bench, given), given, FILE, gpu=bench.gpu, run=ran, shown=shown)


if __name__ == "__main__":
    sys.exit(main())
