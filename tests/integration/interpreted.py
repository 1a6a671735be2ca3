"""Checks of the Triton kernels by Triton's interpreter, which needs no GPU: a script with its own process.

Triton decides when a kernel is defined whether the interpreter runs it, so this must not happen in the
process of other tests. ``python tests/integration/interpreted.py --cases 1000`` runs that many random cases;
``test_cuda_kernels.py`` runs all checks with fewer. Each check prints a line of JSON: its name, and the
traceback if it fails.

The interpreter truncates where it casts to bfloat16, so bfloat16 is compared to one unit in the last place.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

if __name__ == "__main__":  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import tomecore as tc
import tomecore.adapters.torch as tome
from tomecore.adapters.engine.patch import config_of
from tomecore.backends import Fused, Keys, backend_of
from tomecore.backends.kernels.cuda import torch as kernels
from tomecore.models.torch import VisionTransformer

#: one unit in the last place; of float32, a few
ROUNDING = {torch.float32: 3e-7, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
KINDS = ("random", "random", "ties", "padding", "little left", "strided")
LAYOUTS = (1, 2, None)


def case(seed: int) -> tuple[Keys, torch.Tensor, torch.Tensor | None, int, int]:
    """Return keys, tokens, sizes, r and the number of prefix tokens of a random case."""
    rng = torch.Generator().manual_seed(seed)

    def one_of(*values: Any) -> Any:
        return values[int(torch.randint(len(values), (), generator=rng))]

    kind, layout = KINDS[seed % len(KINDS)], one_of(*LAYOUTS)
    dtype = one_of(torch.float32, torch.float32, torch.bfloat16, torch.float16)
    key_dtype = one_of(dtype, dtype, torch.bfloat16)
    protected = one_of(0, 1, 1, 2, 5)
    count = protected + int(torch.randint(2, 130 if seed % 10 == 0 else 60, (), generator=rng))
    most = (count - protected) // 2
    r = one_of(most, 1 + int(torch.randint(most, (), generator=rng)))
    batch, heads = one_of(1, 1, 2), one_of(1, 2, 3, 5)
    width, channels = one_of(8, 16, 24, 80), one_of(12, 48, 192, 300)
    if kind == "ties":  # cosines of these are exact
        key = torch.eye(8)[torch.randint(8, (batch, count), generator=rng)]
        key = key[:, :, None].repeat(1, 1, heads, 1)
        key[:, torch.randint(count, (2,), generator=rng)] = 0  # keys of norm 0
    else:
        key = torch.randn(batch, count, heads, width, generator=rng)
    key = key.to(key_dtype)
    x = (3 * torch.randn(batch, count, channels, generator=rng)).to(dtype)
    size = None
    if kind in ("padding", "little left") or one_of(True, False):
        size = torch.randint(1, 300, (batch, count), generator=rng).float()
    if kind == "padding":
        size[:, protected:] *= torch.rand(batch, count - protected, generator=rng) > 0.4
        x[size == 0] = one_of(torch.nan, torch.inf, 7.0)
    if kind == "little left":  # a sample with one token, whose partners are padding, or with none
        size[0, protected:] = 0
        if one_of(True, False):
            size[0, protected + protected % 2] = 2
    if kind == "strided":
        x = x.repeat(1, 1, 2)[:, :, :channels]
        key = torch.stack([key + 1, key, key - 1], 2)[:, :, 1]
    if layout == 1:
        key = key.transpose(1, 2) if one_of(True, False) else key.transpose(1, 2).contiguous()
    if layout is None:
        key = key.flatten(2)
    return Keys(key, layout, heads), x, size, r, protected


def defined(
    keys: Keys, x: torch.Tensor, size: torch.Tensor | None, r: int, protected: int
) -> tuple[tc.MergePlan, torch.Tensor, torch.Tensor]:
    """Return the plan, the tokens and the sizes by the definition."""
    key = keys.array.float()
    key = key.unflatten(2, (keys.heads, -1)).sum(2) if keys.axis is None else key.sum(keys.axis)
    valid = None if size is None else size > 0
    plan = tc.bipartite_soft_matching(key, r, protected=protected, valid=valid)
    return plan, *tc.merge_weighted(plan, x, size)


def fused(keys: Keys, x: Any, size: Any, r: int, protected: int) -> Fused | None:
    return backend_of(x).fused(keys, x, size, None, r, protected)


def agree(found: Fused | None, expected: tuple[tc.MergePlan, torch.Tensor, torch.Tensor]) -> None:
    """Compare a fused merge with the definition."""
    assert found is not None
    plan, merged, sizes = expected
    assert torch.equal(found.tokens, torch.cat([plan.kept, plan.merged], 1))
    assert torch.equal(found.into, plan.into)
    assert torch.equal(found.slots, plan.slots)
    assert torch.equal(found.sizes, sizes)
    assert found.x.dtype == found.bias.dtype == merged.dtype
    scale = merged.float()[merged.isfinite()].abs().max().item() if merged.isfinite().any() else 1.0
    rounding = ROUNDING[merged.dtype]
    torch.testing.assert_close(found.x, merged, rtol=rounding, atol=3e-7 * scale, equal_nan=True)
    logs = sizes.log()[:, None, None]
    torch.testing.assert_close(found.bias.float(), logs, rtol=rounding, atol=2e-7)
    stored = found.bias.as_strided((len(logs), found.bias.stride(0)), (found.bias.stride(0), 1))
    assert found.bias.stride(0) % 16 == 0  # otherwise attention copies it
    assert (stored[:, logs.shape[3] :] == 0).all()  # where it may read further


def random_cases(seeds: range) -> None:
    for seed in seeds:
        given = case(seed)
        try:
            agree(fused(*given), defined(*given))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def some(r: int = 5, **change: Any) -> dict[str, Any]:
    """Return the arguments of a small merge, by name."""
    torch.manual_seed(1)
    key = torch.randn(2, 3, 25, 8)
    given = {"keys": Keys(key, 1, 3), "x": torch.randn(2, 25, 12), "size": None, "r": r}
    return {**given, "protected": 1, **change}


def the_same_bits_twice() -> None:
    given = some(size=torch.randint(1, 9, (2, 25)).float())
    for first, second in zip(fused(**given), fused(**given), strict=True):
        assert first is second is None or torch.equal(first, second)


def values_that_are_not_finite() -> None:
    given = some(r=12)
    keys, x = given["keys"], given["x"]
    x[0, 1:] = 3.4e38 * torch.sign(
        torch.randn(24, 12)
    )  # steps between them exceed the largest number
    x[1, 2::3] = torch.inf
    agree(fused(**given), defined(**given))
    x[1, 3::3], x[1, 4] = -torch.inf, torch.nan
    agree(fused(**given), defined(**given))
    keys.array[:, :, 5], keys.array[1, :, 8] = torch.nan, torch.inf
    agree(fused(**given), defined(**given))


def padding_has_no_effect() -> None:
    size = torch.ones(2, 25)
    size[:, 18:] = 0
    given = some(size=size, r=8)
    plain = fused(**given)
    given["keys"].array[:, :, 18:] = torch.nan
    given["x"][:, 18:] = torch.nan
    real = plain.sizes > 0
    found = fused(**given)
    assert torch.equal(found.sizes, plain.sizes)
    assert torch.equal(found.tokens[:, :17][real], plain.tokens[:, :17][real])
    assert torch.equal(found.x[real], plain.x[real])
    assert found.x[real].isfinite().all()


def bias_of_queries() -> None:
    """Under autocast of the tokens' device, the bias has the dtype that queries will have."""
    given = some()
    assert fused(**given).bias.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(**given).bias.dtype == torch.bfloat16


def opchecks() -> None:
    names = [
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    ]
    for size in (None, torch.randint(0, 3, (2, 25)).float()):
        given = some(size=size)
        x = given["x"].requires_grad_()
        operation = torch.ops.tomecore.match_and_merge.default
        inputs = (given["keys"].array, x, size, 5, 1, torch.float32)
        found = torch.library.opcheck(operation, inputs, test_utils=names)
        assert set(found.values()) == {"SUCCESS"}, found
        merged, sizes, _, tokens, into, _ = operation(*inputs)
        gradient = torch.randn_like(merged).requires_grad_()
        inputs = (gradient, size, sizes, tokens, into)
        found = torch.library.opcheck(
            torch.ops.tomecore.merge_gradient.default, inputs, test_utils=names
        )
        assert set(found.values()) == {"SUCCESS"}, found


def gradients() -> None:
    """First and second derivatives are those of the calls; sizes and plans have none."""
    weights = torch.randn(2, 17, 12)
    empty = torch.randint(0, 3, (2, 25)).float()
    empty[0] = 0
    for size in (None, torch.randint(1, 9, (2, 25)).float(), empty):
        given = some(size=size, r=8)
        x = given["x"].requires_grad_()
        results = []
        for merged in (fused(**given).x, defined(**given)[1]):
            (first,) = torch.autograd.grad((merged**2 * weights).sum(), x, create_graph=True)
            (second,) = torch.autograd.grad((first**3).sum(), x)
            results.append((first, second))
        torch.testing.assert_close(
            *results, rtol=1e-5, atol=1e-5 * results[1][1].abs().max().item()
        )
        found = fused(**given)
        assert not any(one.requires_grad for one in (found.sizes, found.bias))
        (spread,) = torch.autograd.grad(found.x.sum(), x)  # a gradient without strides
        (expected,) = torch.autograd.grad(defined(**given)[1].sum(), x)
        torch.testing.assert_close(spread, expected, rtol=1e-5, atol=1e-6)


def model() -> torch.nn.Module:
    """Return our own ViT, patched; its keys differ more than those of a new model."""
    torch.manual_seed(0)
    found = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=4).eval()
    for block in found.blocks:
        block.attn.qkv.weight.data *= 4
    return tome.apply_patch(found, r=3)


def images(batch: int = 2) -> torch.Tensor:
    return torch.linspace(0, 60, batch * 3 * 16 * 16).sin().reshape(batch, 3, 16, 16)


class Calls:
    """While active, merging uses the calls of the library."""

    def __enter__(self) -> None:
        kernels.DEVICES.discard("cpu")

    def __exit__(self, *error: object) -> None:
        kernels.DEVICES.add("cpu")


class Merges:
    """While active, counts the merges of the operation."""

    def __enter__(self) -> Merges:
        self.count, self._function = 0, kernels.match_and_merge
        kernels.match_and_merge = self._counting
        return self

    def _counting(self, *given: Any) -> Fused | None:
        found = self._function(*given)
        self.count += found is not None
        return found

    def __exit__(self, *error: object) -> None:
        kernels.match_and_merge = self._function


def trained(net: torch.nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the gradients of a training step, as one row."""
    net.train().zero_grad()
    run(images()).square().sum().backward()
    found = [parameter.grad for parameter in net.parameters()]
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def models() -> None:
    """A model computes what it computes by the calls: outputs, sources, gradients, with checkpoints too."""
    net = model()
    config_of(net).trace_source = True
    with torch.no_grad(), Merges() as merges:
        found, source, sizes = net(images()), net.tome.source, net.tome.sizes
        assert merges.count == 3
        with Calls():
            expected = net(images())
        assert torch.equal(source, net.tome.source)
        assert torch.equal(sizes, net.tome.sizes)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with Calls():
        expected = trained(net, net)
    with Merges() as merges:
        close = partial(
            torch.testing.assert_close, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )
        close(trained(net, net), expected)
        assert merges.count == 3
        for reentrant in (False, True):
            close(trained(net, partial(checkpointed, net, reentrant)), expected)
        assert merges.count == 3 + 2 * 6


def checkpointed(net: torch.nn.Module, reentrant: bool, x: torch.Tensor) -> torch.Tensor:
    """Run the model with each block in a checkpoint."""
    blocks = list(net.blocks)
    run = partial(checkpoint, use_reentrant=reentrant)
    net.blocks.forward = lambda x: reduce(lambda y, block: run(block, y), blocks, x)
    try:
        return net(x)
    finally:
        del net.blocks.forward


def compiled() -> None:
    """A compiled model is one graph with the operation; it computes the same, for another batch size too."""
    net, graphs = model(), []
    expected = trained(net, net)

    def seen(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(str(graph.graph).count("tomecore.match_and_merge"))
        return aot_eager(graph, inputs)

    torch.compiler.reset()
    graph = torch.compile(net, fullgraph=True, backend=seen)
    torch.testing.assert_close(trained(net, graph), expected, rtol=1e-4, atol=1e-4)
    net.eval()
    with torch.no_grad():
        for batch in (2, 3):
            found = graph(images(batch))
            torch.testing.assert_close(found, net(images(batch)), rtol=1e-4, atol=1e-5)
    assert len(graphs) in (2, 3)  # the batch size becomes dynamic at the second
    assert set(graphs) == {3}
    torch.compiler.reset()


class Merge(torch.nn.Module):
    def forward(self, key: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.tomecore.match_and_merge(key, x, None, 5, 1, x.dtype)[0]


def exported() -> None:
    """The operation is exported with a dynamic batch; an exported model consists of plain operations."""
    given = some()
    batch = torch.export.Dim("batch")
    key, x = given["keys"].array, given["x"]
    program = torch.export.export(Merge(), (key, x), dynamic_shapes=({0: batch}, {0: batch}))
    assert "tomecore" in str(program.graph)
    key, x = torch.randn(3, 3, 25, 8), torch.randn(3, 25, 12)
    torch.testing.assert_close(program.module()(key, x), Merge()(key, x), rtol=0, atol=0)
    net = model()
    for strict in (False, True):
        program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch},), strict=strict)
        assert "tomecore" not in str(program.graph)
        with torch.no_grad():
            found = program.module()(images(3))
            torch.testing.assert_close(found, net(images(3)), rtol=1e-4, atol=1e-5)


def calls_are_kept() -> None:
    """Calls are used where something watches operations, and for arrays that kernels cannot read."""
    given = some()
    keys, x = given["keys"], given["x"]

    def inside(transform: Callable[..., Any], *arguments: Any) -> Fused | None:
        found = []

        def function(x: torch.Tensor) -> torch.Tensor:
            found.append(fused(**{**given, "x": x}))
            return x.sum()

        transform(function, *arguments)
        assert len(found) == 1
        return found[0]

    def with_array(change: Callable[[torch.Tensor], torch.Tensor]) -> Keys:
        return keys._replace(array=change(keys.array))

    with FlopCounterMode(display=False):
        assert fused(**given) is None
    assert inside(lambda function, x: make_fx(function)(x), x) is None
    assert inside(lambda function, x: torch.func.vmap(function)(x), x[None]) is None
    assert inside(lambda function, x: torch.func.jvp(function, (x,), (x,)), x) is None
    assert inside(lambda function, x: torch.jit.trace(function, x, check_trace=False), x) is None
    refused = {
        "float64": {"x": x.double()},
        "keys in float64": {"keys": with_array(torch.Tensor.double)},
        "fewer keys": {"keys": with_array(lambda key: key[:, :, 1:])},
        "columns apart": {"x": x.mT.contiguous().mT},
        "sizes apart": {"size": torch.ones(25, 2).T},
        "sizes in float64": {"size": torch.ones(2, 25).double()},
        "sizes with gradients": {"size": torch.ones(2, 25, requires_grad=True)},
        "too many tokens": {
            "keys": Keys(torch.zeros(1, 1, 4100, 1), 1, 1),
            "x": torch.zeros(1, 4100, 1),
        },
    }
    for name, change in refused.items():
        assert fused(**{**given, **change}) is None, name
    assert fused(**given) is not None
    negative = {**given, "x": torch._neg_view(x)}  # torch resolves it for any operation
    torch.testing.assert_close(fused(**negative).x, -fused(**given).x, rtol=0, atol=0)


CHECKS: tuple[Callable[[], None], ...] = (
    the_same_bits_twice,
    values_that_are_not_finite,
    padding_has_no_effect,
    bias_of_queries,
    opchecks,
    gradients,
    models,
    compiled,
    exported,
    calls_are_kept,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=50, help="number of random cases")
    parser.add_argument(
        "--first", type=int, default=0, help="the seed of the first case; others follow"
    )
    parser.add_argument("--only", help="run the checks with this in their name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", "tomecore")
    torch.set_num_threads(1)
    kernels.DEVICES.add("cpu")
    kernels._is_new_enough = lambda index: True
    kernels._runs = lambda index: True
    assert kernels.available()
    seeds = range(arguments.first, arguments.first + arguments.cases)
    failed = 0
    checks = {"random_cases": partial(random_cases, seeds)}
    checks |= {check.__name__: check for check in CHECKS}
    for name, check in checks.items():
        if arguments.only and arguments.only not in name:
            continue
        error = None
        try:
            check()
        except Exception:
            error = traceback.format_exc()
            failed += 1
        print(json.dumps([name, error]), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
