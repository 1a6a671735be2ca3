"""The checks of ``gpu.py``: does a merging model compute the right numbers on this device?

Each check returns its results as plain data, and raises AssertionError if a number is above its limit.
Checks whose description ends in "information" have no limit. Models are ViTs of timm with random weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial, reduce
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import tomecore.adapters.torch as tome
from tomecore import bipartite_soft_matching, merge_weighted
from tomecore.adapters.engine.patch import config_of
from tomecore.adapters.engine.reduce import matching_key
from tomecore.backends import Keys
from tomecore.backends.torch import BACKEND
from tomecore.benchmark import Place, peak_bytes

Found = dict[str, Any]
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
#: the largest difference allowed, relative to the largest number: of logits from those in float64, and
#: of merged tokens from their definition
LIMITS = {F64: (1e-10, 1e-12), F32: (1e-4, 1e-6), F16: (2e-2, 1e-3), BF16: (1e-1, 4e-3)}
#: the largest share of images in which near-ties may be decided differently than in float64
OTHERWISE = {F64: 0.0, F32: 0.25, F16: 0.9, BF16: 0.9}
MODELS = {"S": "small_patch16_224", "B": "base_patch16_224", "L": "large_patch16_224"}
TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "num_heads": 4}
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "merge.npz"


class Device:
    """A device, and the models and images for its checks.

    Args:
        name: "cuda" or "cpu".
        tiny: whether models are so small that their speed means nothing.
    """

    def __init__(self, name: str, tiny: bool) -> None:
        self.name, self.tiny, self.gpu = name, tiny, name != "cpu"
        self.wait = torch.cuda.synchronize if self.gpu else lambda: None

    def images(self, batch: int, dtype: torch.dtype = F32, side: int = 224) -> Tensor:
        """Return random images (batch, 3, side, side); at most 16 of 32 pixels if the models are tiny."""
        batch, side = (min(batch, 16), TINY["img_size"]) if self.tiny else (batch, side)
        return torch.randn(batch, 3, side, side, device=self.name).to(dtype)

    def pair(
        self, dtype: torch.dtype = F32, name: str = "S", depth: int = 4, side: int = 224, **how: Any
    ) -> Any:
        """Return a model and a patched copy with r = 8; its keys differ more than those of a new model."""
        sizes = TINY if self.tiny else {"img_size": side}
        torch.manual_seed(0)
        with torch.device(self.name):
            model = timm.create_model(f"vit_{MODELS[name]}", depth=depth, **sizes)
        plain: Any = model.eval().to(dtype)
        for block in plain.blocks:
            block.attn.qkv.weight.data *= 4
        return plain, tome.apply_patch(copy.deepcopy(plain), r=8, trace_source=True, **how)


def difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest number expected."""
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    return ((got - expected).abs().max() / expected.abs().max()).item()


def within(limit: float, **found: float) -> Found:
    """Return the numbers; raise if one is above the limit, or NaN."""
    for name, number in found.items():
        if not number <= limit:
            raise AssertionError(f"{name.replace('_', ' ')}: {number:.3g}, above {limit:g}")
    return found


def watch(model: nn.Module) -> list[Found]:
    """Compare each merge of a patched model with its definition in float64; the list grows by merge."""
    settings, found = config_of(model), []
    merge = settings.reduce

    def compared(
        config: Any, block: Any, x: Tensor, keys: Any, run: Any, amount: int, entered: Any
    ) -> Any:
        tokens, after = merge(config, block, x, keys, run, amount, entered)
        plan, rows = after.history.plan, torch.arange(len(x), device=x.device)[:, None]
        units = nn.functional.normalize(matching_key(config, block, keys).double(), dim=-1)
        best = (units[:, 2::2] @ units[:, 1::2].mT).amax(2).topk(amount).values
        partner = units[rows, plan.kept.gather(1, plan.into)]
        lost = (best - (units[rows, plan.merged] * partner).sum(2)).abs().max().item()
        slots = nn.functional.one_hot(plan.slots, plan.num_slots).double().mT
        size = torch.ones_like(plan.slots) if run.sizes is None else run.sizes
        size = size.double()[:, :, None]
        error = difference(tokens, slots @ (size * x) / (slots @ size))
        sizes = difference(after.sizes, (slots @ size)[:, :, 0])
        found.append({"lost_cosine": lost, "sizes": sizes, "merged_tokens": error})
        return tokens, after

    settings.reduce = compared
    return found


def train_step(model: nn.Module, x: Tensor) -> Tensor:
    """Return logits and gradients of one training step, in one row."""
    model.train().zero_grad()
    with torch.enable_grad():
        output = model(x)
        output.square().sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([output.detach().flatten(), *gradients])


class Graphed(nn.Module):
    """A model as a CUDA graph of its forward pass, captured in the first call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.graph = model, torch.cuda.CUDAGraph()

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "x"):
            self.x = x.clone()
            self.model(self.x)
            with torch.cuda.graph(self.graph):
                self.output = self.model(self.x)
        self.x.copy_(x)
        self.graph.replay()
        return self.output


def golden(device: Device) -> Found:
    """Check that the core gives the numbers of the published implementations, and merges the same tokens."""
    with np.load(GOLDEN) as stored:
        arrays = dict(stored)
    found, otherwise = {"tokens": 0.0, "sizes": 0.0}, 0
    for number, asked in enumerate(json.loads(bytes(arrays["cases"]))):
        if asked.pop("kind") != "bipartite":
            continue
        case = {
            name: torch.from_numpy(arrays[f"{number:03d}.{name}"]).to(device.name)
            for name in ("metric", "x", "size", "source", "wavg", "wavg_size")
        }
        plan = bipartite_soft_matching(case["metric"], **asked)
        x, sizes = merge_weighted(plan, case["x"], case["size"][:, :, 0])
        otherwise += int((plan.slots != case["source"].double().argmax(1)).sum())
        found["tokens"] = max(found["tokens"], difference(x, case["wavg"]))
        found["sizes"] = max(found["sizes"], difference(sizes, case["wavg_size"][:, :, 0]))
    return within(0, merged_otherwise=otherwise) | within(1e-11, **found)


def numbers(
    device: Device, dtype: torch.dtype, half: Any = None, backend: Any = None, **how: Any
) -> Found:
    """Check each merge against its definition, and logits against float64 if the same tokens merge.

    With r = 0 and without the patch the model computes the same bits as before.

    Args:
        device: where the model runs.
        dtype: of its weights and images.
        half: the dtype of autocast; no autocast if None.
        backend: the kernel of attention; None: torch chooses.
        **how: settings of the patch.
    """
    plain, model = device.pair(dtype, **how)
    x, reference = device.images(16, dtype), copy.deepcopy(model).cpu().double()
    expected, merges = reference(x.cpu().double()), watch(model)
    autocast = torch.autocast(device.name, half, enabled=half is not None)
    found: Found = {}
    if dtype == F64:
        both = train_step(model, x), train_step(reference, x.cpu())
        found = within(1e-8, gradients=difference(*both))
        model.eval()
    with autocast if backend is None else sdpa_kernel(backend):
        output, without, source = model(x), plain(x), model.tome.source.cpu()
        model.r = 0
        found |= within(0, r_0=difference(model(x), without))
        found |= within(0, removed=difference(tome.remove_patch(model)(x), without))
    worst = {name: max(one[name] for one in merges) for name in merges[0]}
    found |= within(0, not_finite=float((~output.isfinite()).sum()), sizes=worst["sizes"])
    found |= within(1e-12 if dtype == F64 else 1e-5, lost_cosine=worst["lost_cosine"])
    found |= within(LIMITS[dtype][1], merged_tokens=worst["merged_tokens"])
    alike = (source == reference.tome.source).all(1)
    share = 1 - alike.double().mean().item()
    found |= within(OTHERWISE[half or dtype], merged_otherwise=share)
    error = difference(output.cpu()[alike], expected[alike])
    return found | within(LIMITS[half or dtype][0], logits=error)


def fused_kernels(device: Device) -> Found:
    """Check the Triton kernels: the plans and sizes of the calls, their tokens, and the same bits twice."""
    found: Found = {}
    for dtype, prefix, weighted in product((F32, BF16, F16), (0, 1), (False, True)):
        torch.manual_seed(0)
        qkv = torch.randn(16, 197, 3, 6, 64, device=device.name).to(dtype)
        x, key = (
            torch.randn(16, 197, 384, device=device.name).to(dtype),
            qkv.permute(2, 0, 3, 1, 4)[1],
        )
        size = torch.randint(1, 9, (16, 197), device=device.name).float() if weighted else None
        first, second = (
            BACKEND.fused(Keys(key, 1, 6), x, size, None, 16, prefix) for _ in range(2)
        )
        if first is None or second is None:
            raise AssertionError("the kernels did not run; the warnings say why")
        plan = bipartite_soft_matching(key.float().sum(1), 16, protected=prefix)
        tokens, sizes = merge_weighted(plan, x, size)
        same = zip(first, second, strict=True)
        found |= within(
            0,
            plans=float((first.slots != plan.slots).sum() + (first.into != plan.into).sum()),
            sizes=difference(first.sizes, sizes),
            twice=float(sum(a is not b and not torch.equal(a, b) for a, b in same)),
        )
        found |= within(
            LIMITS[dtype][1], **{f"tokens_{str(dtype)[6:]}": difference(first.x, tokens)}
        )
    with torch.enable_grad():
        given = key.float(), x.float().requires_grad_(), size, 16, 1, F32
        results = torch.library.opcheck(torch.ops.tomecore.match_and_merge.default, given)
    return found | {"opcheck": results}


class AttentionDtypes(TorchFunctionMode):
    """While active, records the dtypes of queries and mask in each call of the fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[torch.dtype, torch.dtype]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            if mask is not None:
                self.found.add((args[0].dtype, mask.dtype))
        return func(*args, **kwargs)


def mask_dtypes(device: Device) -> Found:
    """Check that the mask has the dtype of the queries, because some kernels read it as if it had."""
    seen: Found = {}
    for dtype in (F32, F16, BF16):
        with AttentionDtypes() as dtypes:
            device.pair(dtype)[1](device.images(2, dtype))
        seen[str(dtype)] = sorted(str(mask) for _, mask in dtypes.found)
        if dtypes.found != {(dtype, dtype)}:
            raise AssertionError(f"queries and masks of a {dtype} model: {dtypes.found}")
    return seen


def deterministic(device: Device) -> Found:
    """Check that deterministic algorithms give the same bits twice, and nearly the same with checkpoints."""
    torch.use_deterministic_algorithms(True)
    found: Found = {}
    for dtype, reentrant in product((F32, BF16), (False, True)):
        model, x = device.pair(dtype)[1], device.images(4, dtype)
        first, blocks = train_step(model, x), list(model.blocks)
        twice = difference(train_step(model, x), first)
        once = partial(checkpoint, use_reentrant=reentrant)
        model.blocks.forward = lambda x, run=once, blocks=blocks: reduce(
            lambda y, block: run(block, y), blocks, x
        )
        name = f"{str(dtype)[6:]}_{'reentrant' if reentrant else 'checkpointed'}"
        found |= within(0, **{f"{str(dtype)[6:]}_twice": twice})
        found |= within(1e-5, **{name: difference(train_step(model, x), first)})
    return found


def again(device: Device, precision: str) -> Found:
    """Return how a second run differs with this precision of float32 products: information."""
    model, x = device.pair()[1], device.images(64)
    first, source, merges = model(x), model.tome.source, watch(model)
    torch.set_float32_matmul_precision(precision)
    error = difference(model(x), first)
    otherwise = (model.tome.source != source).any(1).double().mean().item()
    lost = max(one["lost_cosine"] for one in merges)
    return {"difference": error, "merged_otherwise": otherwise, "lost_cosine": lost}


def cudnn_gradients(device: Device) -> Found:
    """Return the gradients through cuDNN's attention if a layer attends to 192 tokens: information.

    Some versions of torch give NaN there with any mask.
    """
    model, x = device.pair(BF16)[1], device.images(16, BF16)
    model.r = 5
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        row = train_step(model, x)
    return {"not_finite": int((~row.isfinite()).sum()), "of": len(row)}


def another_form(device: Device, make: Callable[[nn.Module], Any], *batches: int) -> Found:
    """Check that another form of a model gives the same output for each batch."""
    model = device.pair(depth=2)[1]
    form, errors = make(model), []
    for x in map(device.images, batches):
        errors.append(difference(form(x), model(x)))
    return within(1e-3, error=max(errors))


def streams(device: Device) -> Found:
    """Check two concurrent streams on shapes that are new to both; the first stream is late."""
    late, other = torch.cuda.Stream(), torch.cuda.Stream()
    worst = {"late": 0.0, "other": 0.0}
    for trial in range(10):
        keys, got = torch.randn(3 + trial, 301 + 2 * trial, 64, device=device.name), []
        with torch.cuda.stream(late):  # an early read gives zeros, not random addresses
            blank = [torch.zeros(2**17, device=device.name) for _ in range(32)]
        del blank
        device.wait()
        for stream, cycles in ((late, 10**8), (other, 1), (torch.cuda.current_stream(), 1)):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(cycles)
                plan = bipartite_soft_matching(keys, 16, class_token=True)
                got.append(merge_weighted(plan, keys)[0])
            if stream is not late:
                device.wait()
        for name, result in zip(worst, got, strict=False):
            worst[name] = max(worst[name], difference(result, got[2]))
    return within(1e-5, **worst)


def no_waits(device: Device) -> Found:
    """Check that nothing waits for the device in a training step with a new batch size."""
    model, x = device.pair(BF16)[1], device.images(5, BF16)
    train_step(model, x[:4])
    torch.cuda.set_sync_debug_mode("error")
    return {"logits_and_gradients": len(train_step(model, x))}


def memory(device: Device) -> Found:
    """Check that the peak of a forward pass is at most 1.05 times that of the unpatched model."""
    place, x, peaks = Place("torch", device.name, "bfloat16"), device.images(64, BF16), []
    for model in device.pair(BF16):
        model(x)
        peaks.append(peak_bytes(place, partial(model, x)) or 1)
    return {"bytes": peaks, **within(1.05, ratio=peaks[1] / peaks[0])}
