"""For a machine with a GPU and Paddle: does merging compute the right numbers there, and how fast is it?

    python benchmarks/paddle_gpu.py --out results --seconds 480    # --skip results/paddle_gpu.jsonl goes on

Nothing but Paddle and tomecore is needed. Each result is a line of paddle_gpu.jsonl, on the disk before the
next begins. Exit status 1 if a check failed.

Near ties fall differently in half precision, and images that decide differently cannot be compared. So the
device merges the tokens that the CPU merged in float64, and every block is held to the CPU's, image by image.
What the device would have merged itself is held to the definition, by its own keys. Without a GPU all of it
runs on the CPU, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# The float32 of a GPU is TF32 unless this is set before CUDA starts.
os.environ |= {"NVIDIA_TF32_OVERRIDE": "0", "TOMECORE_KERNELS": "0"}

import numpy as np
import paddle

import tomecore.adapters.paddle as tome
from tomecore import MergePlan, __version__, benchmark
from tomecore.adapters.engine.patch import config_of
from tomecore.adapters.engine.reduce import matching_key
from tomecore.adapters.engine.state import MergeHistory
from tomecore.core.merging import weighted_mean
from tomecore.models.paddle import VisionTransformer

Found = dict[str, Any]
SIZES = {
    "tiny": {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2},
    "vit_s": {"img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_b": {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_l": {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
}
#: largest difference allowed, relative to the largest number: of attention, of merged tokens, of cosines,
#: and of blocks, these at least; where an unpatched model is further off, three times as far as that
LIMITS = {
    "float32": (1e-5, 1e-5, 1e-5, 1e-4),
    "float16": (1e-2, 2e-3, 1e-5, 1e-2),
    "bfloat16": (6e-2, 1.6e-2, 1e-5, 6e-2),
}
#: tokens that attention is tried with: some multiples of 8, some not
TOKENS = (197, 192, 184, 181, 168, 128, 9)
#: the schedules that are checked: some of their layers attend a multiple of 8 tokens, some do not
CHECKED = {"tiny": (8, [1, 8, 16], [9, 15, 0]), "": (5, 13, 16, [5, 8, 3, 13, 40])}


def build(name: str, dtype: str, weights: Found | None = None) -> VisionTransformer:
    """A model in evaluation mode whose attention is not nearly uniform."""
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
    """The largest, relative to the largest number expected; NaN where a number is none."""
    got, expected = (
        (x if isinstance(x, np.ndarray) else x.astype("float64").numpy()) for x in (got, expected)
    )
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def within(limit: float, **found: float) -> Found:
    """What was found; raises if it is above the limit, or no number."""
    for name, number in found.items():
        if not number <= limit:
            raise AssertionError(f"{name.replace('_', ' ')}: {number:.3g}, above {limit:.3g}")
    return found


class Merges:
    """Has a patched model merge what another merged, and keeps what it would have merged itself.

    Args:
        model: patched.
        plans: of a run of another model, layer by layer; None: the model merges what it finds.
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
        self.plan = plan  # which the run does not keep where kernels merged

    def __call__(
        self, config: Any, block: Any, x: Any, keys: Any, run: Any, amount: int
    ) -> tuple[Any, Any]:
        tokens, after = self.merge(config, block, x, keys, run, amount)
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
        return tokens, run.merged(sizes, MergeHistory(plan, run.history), None)


def held(
    plan: tuple[np.ndarray, ...], key: np.ndarray, x: Any, size: Any, tokens: Any, sizes: Any
) -> Found:
    """A merge against the definition in float64; the class token stands in front."""
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
        self.dtypes = list(LIMITS) if self.gpu else ["float32"]  # a CPU has no kernels for halves
        self.reference: dict[str, Any] = {}

    def expected(self, name: str, batch: int, r: Any) -> Found:
        """The model in float64 on the CPU: weights, plans, blocks and logits."""
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
        """The bias of sizes and of positions, as Paddle's kernels read it."""
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
        """Each block and the logits as on the CPU; merges as defined."""
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

    def again(self, name: str, r: Any, dtype: str) -> Found:
        """For information: whether two forwards give the same bits."""
        model = tome.apply_patch(build(name, dtype), r=r)
        x = paddle.to_tensor(pictures(name, 3)).astype(dtype)
        first, second = (model(x).astype("float32").numpy() for _ in range(2))
        return {"same": bool(np.array_equal(first, second))}

    def static(self, name: str, r: Any) -> Found:
        """A static graph computes what the model computes."""
        model = tome.apply_patch(build(name, "float32"), r=r)
        x = paddle.to_tensor(pictures(name, 3)).astype("float32")
        exact, size = model(x), SIZES[name]["img_size"]
        spec = [paddle.static.InputSpec([None, 3, size, size], "float32")]
        program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
        return within(1e-4, graph=difference(program(x), exact))

    def gradients(self, name: str, r: Any, dtype: str) -> Found:
        """Those of the logits, as on the CPU; the device merges what the CPU merged."""
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
        """Unpatched, merging and dropping in turn, and the ratios within each round."""
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
        """What the numbers depend on."""
        device = paddle.device.cuda.get_device_name() if self.gpu else "cpu"
        return {"device": device, "paddle": paddle.__version__, "tomecore": __version__}


def attended(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Attention of (B, n, H, D), by its definition."""
    q, k, v = (t.transpose(0, 2, 1, 3) for t in (q, k, v))
    scores = q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5 + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def items(bench: Bench, asked: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Found]]]:
    """The checks in order, each as a name and the call that runs it."""
    yield "machine", bench.machine
    for dtype in bench.dtypes:
        yield f"check attention {dtype}", partial(bench.attention, dtype)
    small = asked.models[0]
    for r in CHECKED["tiny" if small == "tiny" else ""]:
        for dtype in bench.dtypes:
            yield f"check model r {r} {dtype}", partial(bench.model, small, r, dtype)
    first = CHECKED["tiny" if small == "tiny" else ""][0]
    yield "check static graph", partial(bench.static, small, first)
    for dtype in bench.dtypes:
        yield f"check gradients {dtype}", partial(bench.gradients, small, first, dtype)
        yield f"twice {dtype}", partial(bench.again, small, first, dtype)
    for name in asked.models:
        for batch in asked.batches:
            for r in asked.r:
                for dtype in bench.dtypes:
                    call = partial(bench.speed, name, batch, r, dtype, asked.rounds)
                    yield f"{name} batch {batch} r {r} {dtype}", call


def ran(name: str, call: Callable[[], Found]) -> Found:
    """The line of a result."""
    start = time.monotonic()
    try:
        with paddle.no_grad():
            line: Found = {"name": name, "status": "done", **call()}
    except Exception:
        last = traceback.format_exc().splitlines()[-6:]
        line = {"name": name, "status": "FAILED", "traceback": last}
    return line | {"seconds": round(time.monotonic() - start, 1)}


def shown(line: Found) -> str:
    """A result in a line."""
    start = f"{line['status']:8s}{line['name']:34s}"
    if "speedup" in line:
        share = f"{line['free_drop_share']:6.1%} of free-drop"
        return f"{start} {line['speedup']:5.2f}x of {line['limit']:5.2f}x, {share}"
    if "traceback" in line:
        return f"{start} {line['traceback'][-1][:190]}"
    return f"{start} {json.dumps({key: line[key] for key in list(line)[2:]})[:190]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of paddle_gpu.jsonl")
    parser.add_argument("--seconds", type=float, default=480, help="what begins later is skipped")
    parser.add_argument("--device", help="gpu:0, cpu ...; a GPU if there is one")
    parser.add_argument("--models", nargs="+", choices=SIZES, help="the first is checked")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--r", nargs="+", type=int, default=[8, 13, 16])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="so small that speed says nothing")
    parser.add_argument("--skip", type=Path, help="what has run in this file does not run again")
    asked = parser.parse_args(argv)
    if asked.tiny:
        asked.batches, asked.r, asked.rounds = [2], [8], 4
    asked.models = asked.models or (["tiny"] if asked.tiny else ["vit_s", "vit_b"])
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    deadline = time.monotonic() + asked.seconds
    bench = Bench(asked.device or ("gpu:0" if has_gpu else "cpu"))
    paddle.set_device(bench.device)
    asked.out.mkdir(parents=True, exist_ok=True)
    before = asked.skip.read_text().splitlines(keepends=True) if asked.skip else []
    kept = [json.loads(text) for text in before if text.endswith("}\n")]  # a cut may halve a line
    lines = {line["name"]: line for line in kept if line["status"] == "done"}
    path = asked.out / "paddle_gpu.jsonl"
    path.with_suffix(".kept").write_text("".join(json.dumps(one) + "\n" for one in lines.values()))
    path.with_suffix(".kept").replace(path)
    with path.open("a") as file:
        for name, call in items(bench, asked):
            if name in lines and name != "machine":
                continue
            if time.monotonic() > deadline:
                line = {"name": name, "status": "skipped", "why": "no time is left"}
            else:
                line = ran(name, call)
            lines[name] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            print(shown(line), flush=True)
    failed = [name for name, line in lines.items() if line["status"] == "FAILED"]
    skipped = sum(line["status"] == "skipped" for line in lines.values())
    print(f"{len(lines)} results, {len(failed)} failed, {skipped} skipped", *failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
