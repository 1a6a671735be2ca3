"""The operations that merging adds to a block of a static program, so that a new one is noticed."""

from __future__ import annotations

from collections import Counter

import paddle
import pytest

from tomecore.adapters import paddle as tome
from tomecore.models.paddle import VisionTransformer

#: they only rename, or pass on, memory
VIEWS = ("reshape", "squeeze", "unsqueeze", "split", "combine", "parameter", "data")
#: they run on the host if all their inputs are in its memory
OF_NUMBERS = ("scale", "slice", "stack", "add", "multiply", "combine")

UNPATCHED = Counter(
    add=6, matmul=6, transpose=4, layer_norm=2, unbind=1, scale=1, softmax=1, gelu=1
)
#: besides those of an unpatched block; slices are copies in a static program
MERGING = Counter(
    slice=8, take_along_axis=4, argsort=3, arange=3, scale=3, add=2, matmul=2, concat=2, multiply=2,
    divide=2, expand=2, scatter=2, unbind=1, full_like=1, full=1, sum=1, sqrt=1, clip=1, argmax=1,
    gather=1, log=1,
)  # fmt: skip


def name_of(operation):
    return operation.name().partition(".")[2]


def on_host(operation):
    """Whether the result is a number or a shape in the memory of the host."""
    if name_of(operation) in ("full", "full_int_array"):
        return operation.attrs()["place"].is_cpu_place()
    if name_of(operation) == "shape64":
        return True
    sources = [operand.source().get_defining_op() for operand in operation.operands()]
    return name_of(operation) in OF_NUMBERS and all(map(on_host, sources))


def operations(depth, r):
    """Count the operations of a program that need a kernel on the device."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 4}
    model = VisionTransformer(depth=depth, class_num=5, qkv_bias=True, **sizes)
    model.eval()
    tome.apply_patch(model, r=r)
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32")]
    program = paddle.jit.to_static(model.forward, input_spec=spec, full_graph=True)
    found = program.concrete_program.main_program.global_block().ops
    return Counter(name_of(op) for op in found if name_of(op) not in VIEWS and not on_host(op))


def of_one_block(r):
    """Return the difference between two programs, of three blocks and of two."""
    difference = operations(3, r)
    difference.subtract(operations(2, r[:2]))
    return +difference


def test_an_unpatched_block():
    """The count itself is right: these are the operations of the model's own code."""
    assert of_one_block([0, 0, 0]) == UNPATCHED


@pytest.mark.parametrize("second", [4, 5])
def test_a_block_that_merges(second):
    """With 5, the third block has 55 patches, and one of them is in no pair."""
    found = of_one_block([4, second, 4])
    single = Counter() if second == 4 else Counter(concat=1, slice=1)
    assert found == UNPATCHED + MERGING + single
    assert found.total() - found["slice"] < 60
