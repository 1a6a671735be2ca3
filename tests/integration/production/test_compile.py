"""torch.compile: whole models, single blocks, training. Always one graph, always eager's numbers."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounter

import tomecore.adapters.torch as tome
from production.models import close, gradients, images, kind_named

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@torch.no_grad()
def test_one_graph_for_any_batch_size(kind):
    model, counter = kind.patched(r=8, depth=2), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (3, 2, 5):
        x = images(batch, seed=batch)
        torch._dynamo.mark_dynamic(x, 0)
        close(compiled(x), model(x))
    assert counter.frame_count == 1


@torch.no_grad()
def test_r_changed_afterwards(vit):
    """One graph for each r; one that was compiled before is not compiled again. r = 0 is exact."""
    model, x, counter = vit.patched(depth=2), images(), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for frames, r in ((1, 0), (2, 8), (3, [0, 5]), (3, 8), (3, 0)):
        model.r = r
        close(compiled(x), model(x))
        assert counter.frame_count == frames
    expected = tome.remove_patch(model)(x)
    assert torch.equal(compiled(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-vit", "transformers-dinov2"])
def test_block_by_block(name):
    """Any number of blocks share four graphs: the first, the second, the last, and one for all others,
    in which the number of tokens is a symbol. With r = 0 three: nothing is new in the second block."""
    kind = kind_named(name)
    model, x, counter = kind.patched(r=4, depth=6), images(), CompileCounter()
    expected = model(x)
    for block in kind.blocks(model):
        block.compile(fullgraph=True, backend=counter)
    close(model(x), expected)
    assert counter.frame_count == 4
    model.r = 0
    model(x)
    assert counter.frame_count == 7
    model.r = 4
    close(model(x), expected)
    assert counter.frame_count == 7


@torch.no_grad()
def test_some_blocks_are_compiled_once(vit):
    """A compiled block reads nothing that changes from one forward pass to the next."""
    model, counter = vit.patched(r=8), CompileCounter()
    first = model(images())
    for block in list(model.blocks)[1:]:
        block.compile(fullgraph=True, backend=counter, dynamic=False)
    for _ in range(3):
        close(model(images()), first)
    assert counter.frame_count == 2


@torch.no_grad()
def test_block_by_block_with_another_r_in_each(vit):
    """A graph for each r: beyond dynamo's limit it says so, and a larger limit gives eager's numbers."""
    model, x = vit.patched(r=[4, 3, 2, 1], depth=4), images()
    expected = model(x)
    for block in vit.blocks(model):
        block.compile(fullgraph=True, backend="eager")
    with (
        torch._dynamo.config.patch(recompile_limit=2),
        pytest.raises(FailOnRecompileLimitHit),
    ):
        model(x)
    close(model(x), expected)


def test_training():
    model, x = kind_named("timm-eva").patched(r=8, depth=2).train(), images()
    expected = gradients(model, model(x).square().sum())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    close(gradients(model, compiled(x).square().sum()), expected)


@pytest.mark.parametrize("how", ["blocks", "whole", "one graph"])
def test_training_with_checkpoints_inside(vit, how):
    """Whole models compile around the checkpointed part, unless side effects are allowed in there."""
    model, x = vit.patched(r=8, depth=2).train(), images()
    expected = gradients(model, model(x).square().sum())
    model.set_grad_checkpointing(True)
    compiled, allowed = model, {}
    if how == "blocks":
        for block in vit.blocks(model):
            block.compile(fullgraph=True, backend="aot_eager")
    else:
        one = how == "one graph"
        compiled = torch.compile(model, fullgraph=one, backend="aot_eager")
        allowed = {"skip_fwd_side_effects_in_bwd_under_checkpoint": one}
    with torch._dynamo.config.patch(allowed):
        close(gradients(model, compiled(x).square().sum()), expected)


@torch.no_grad()
def test_inductor(vit):
    """The default compiler; one block, because it compiles C++."""
    model, x = vit.patched(r=8, depth=1), images()
    compiled = torch.compile(model, fullgraph=True)
    close(compiled(x), model(x), 1e-11)


def test_threads_that_share_compiled_blocks(vit):
    model = vit.patched(r=8)
    every = [images(seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = [model(x) for x in every]
    for block in list(model.blocks)[1:]:
        block.compile(fullgraph=True, backend="eager")
    got = [[] for _ in every]

    def work(place):
        with torch.no_grad():
            got[place] += [model(every[place]) for _ in range(5)]

    work(0)
    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(every))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for place, alone in enumerate(expected):
        assert len(got[place]) == (10 if place == 0 else 5)
        for output in got[place]:
            close(output, alone)


def test_sizes_in_a_column(vit):
    """Compiled, too, the kernel gets no mask after the first merge; outputs and gradients are eager's."""
    given = []

    def backend(graph, inputs):
        calls = [
            node for node in graph.graph.nodes if node.target is F.scaled_dot_product_attention
        ]
        given.extend(node.kwargs.get("attn_mask", (*node.args[3:], None)[0]) for node in calls)
        return graph

    model, x = vit.patched(r=8, depth=3, prop_attn="column"), images()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    close(compiled(x).detach(), model(x).detach())
    close(gradients(model, compiled(x).sum()), gradients(model, model(x).sum()))
    assert given == [None] * 3
    given.clear()
    by_mask = vit.patched(r=8, depth=3)
    close(torch.compile(by_mask, fullgraph=True, backend=backend)(x).detach(), model(x).detach())
    assert [mask is None for mask in given] == [True, False, False]
