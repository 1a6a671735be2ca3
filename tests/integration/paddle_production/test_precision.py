"""The rules of ``docs/numerics.md`` for half precision, as far as a CPU can tell.

Paddle's CPU has no half-precision kernels, so nothing half runs here. But a program can be built: its
operators say in which dtype each step would run, of a model in bfloat16 (O2) and of half keys with full
activations (O1).
"""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.test_paddle_only import static

from paddle_production.models import CLAS, DISTILLED, OWN_PLAIN, PPIM
from paddle_production.test_no_host import name_of

MODELS = pytest.mark.parametrize(
    "case", [OWN_PLAIN, CLAS, DISTILLED, PPIM], ids=lambda case: case.name
)
HALF, FULL = paddle.bfloat16, paddle.float32
#: What merging computes with; the unpatched models have none of these.
OF_MERGING = ("log", "sqrt", "clip", "divide", "argsort", "scatter", "sum")


def program_of(model, dtype):
    program = static(model, dtype=dtype).forward.concrete_program.main_program
    return list(program.global_block().ops)


def dtypes(operators, name):
    """Return the dtypes of the first results of operators of this name, except integers."""
    found = [op.results()[0].dtype for op in operators if name_of(op) == name]
    return {dtype for dtype in found if dtype in (HALF, FULL, paddle.float16, paddle.float64)}


def users_through_views(operator):
    for user in operator.results()[0].all_used_ops():
        if name_of(user) in ("unsqueeze", "cast"):
            yield from users_through_views(user)
        else:
            yield user


def operand_dtypes(operator):
    return [operand.source().dtype for operand in operator.operands()]


@MODELS
def test_weights_in_bfloat16(case):
    """O2: similarities, weights and sizes in float32, activations and the attention's bias in bfloat16."""
    model = case.patched(depth=3, r=8).to(dtype="bfloat16")
    model.eval()
    operators = program_of(model, "bfloat16")
    for name in OF_MERGING:
        assert dtypes(operators, name) == {FULL}, name
    assert dtypes(operators, "softmax") == {HALF}
    (output,) = [op for op in operators if name_of(op) == "fetch"] or [operators[-1]]
    assert operand_dtypes(output)[0] == HALF
    logs = [op for op in operators if name_of(op) == "log"]
    assert len(logs) == 2  # the first of three layers has nothing merged before it
    for log in logs:
        users = list(users_through_views(log))
        assert users
        for user in users:
            assert {*operand_dtypes(user)} == {HALF}


@MODELS
def test_half_keys_beside_full_activations(case):
    """O1: linear layers give halves, norms and sums stay full; the bias follows the queries."""
    model = case.fw.single(case.patched(depth=3, r=8))
    for block in model.blocks:
        case.fw.post_hook(block.attn.qkv, lambda layer, inputs, output: output.astype(HALF))
        case.fw.pre_hook(block.attn.proj, lambda layer, inputs: inputs[0].astype(FULL))
    operators = program_of(model, "float32")
    for name in OF_MERGING:
        assert dtypes(operators, name) == {FULL}, name
    assert dtypes(operators, "softmax") == {HALF}
    for log in (op for op in operators if name_of(op) == "log"):
        for user in users_through_views(log):
            assert {*operand_dtypes(user)} == {HALF}


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_autocast_on_a_cpu_changes_nothing(level):
    """Paddle says so in a warning; the numbers, and the sizes, are those of float32."""
    model = OWN_PLAIN.fw.single(OWN_PLAIN.patched(r=8))
    images = paddle.to_tensor(OWN_PLAIN.images().astype("float32"))
    expected = model(images).numpy()
    with (
        pytest.warns(UserWarning, match="it makes no effect"),
        paddle.amp.auto_cast(dtype="bfloat16", level=level),
    ):
        output = model(images)
    assert np.array_equal(output.numpy(), expected)
    assert model.tome.sizes.dtype == FULL


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_more_than_256_tokens_in_one_group(dtype):
    """Sizes are float32 in a model of any precision: bfloat16 counts only to 256."""
    model = CLAS.patched(size=96, depth=9, r=1000, trace_source=True).to(dtype=dtype)
    output = model(paddle.to_tensor(CLAS.images(2, size=96).astype(dtype)))
    assert bool(paddle.isfinite(output).all())
    sizes, source = model.tome.sizes, model.tome.source.numpy()
    assert sizes.dtype == FULL
    assert sizes.numpy().max() > 256
    counted = [np.bincount(row, minlength=sizes.shape[1]) for row in source]
    assert np.array_equal(sizes.numpy(), np.asarray(counted, dtype="float32"))
