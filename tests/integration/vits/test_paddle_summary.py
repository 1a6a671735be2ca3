"""``paddle.summary`` of models that merge: a table, all parameters in it, and the model as it was."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.cases import OWN
from adapters.frameworks import PADDLE

from tomecore.adapters import paddle as tome
from tomecore.errors import UnsupportedModelError
from vits.of_paddle import MORE, PLAIN

CASES = [case for case in (*OWN, *PLAIN, *MORE) if case.fw is PADDLE]


def summary(model, capsys):
    """Layer name -> its number of parameters, and the total."""
    capsys.readouterr()
    found = paddle.summary(model, (2, 3, 32, 32), dtypes="float64")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if not line.startswith("---")]
    layers = {row[0].rpartition("-")[0]: 0 for row in rows if row and "-" in row[0]}
    for row in rows:
        name = row[0].rpartition("-")[0] if row else ""
        if name in layers and len(row) > 1:
            layers[name] += int(row[-1].replace(",", ""))
    return {name: count for name, count in layers.items() if name}, found["total_params"]


def hooks(model):
    return sum(
        len(layer._forward_post_hooks) + len(layer._forward_pre_hooks)
        for layer in model.sublayers(include_self=True)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("r", [0, 8])
def test_a_merging_model_has_a_summary(case, r, capsys):
    """Every layer with parameters is in the table, the bypassed attention too."""
    plain = summary(case.model(depth=2), capsys)
    model, x = case.patched(depth=2, r=r), case.tensors()
    before, count = case.fw.numpy(model(x)), hooks(model)
    layers, total = summary(model, capsys)
    assert total == plain[1]
    assert {name: n for name, n in layers.items() if n} == {n: c for n, c in plain[0].items() if c}
    missing = plain[0].keys() - layers.keys()
    assert all("Drop" in name for name in missing), missing
    assert hooks(model) == count
    assert np.array_equal(case.fw.numpy(model(x)), before)
    tome.apply_patch(model, r=4)
    model(x)


@pytest.mark.parametrize("r", [0, 8])
def test_shapes_of_a_bypassed_attention(r, capsys):
    case = next(case for case in PLAIN if case.name == "paddleclas-plain")
    model = case.patched(depth=2, r=r)
    capsys.readouterr()
    paddle.summary(model, (2, 3, 32, 32), dtypes="float64")
    lines = [line for line in capsys.readouterr().out.splitlines() if "Attention-" in line]
    shapes = [line.split("[", 1)[1].split("]")[0] for line in lines]
    assert shapes == [f"[2, {65 - step * r}, 32" for step in range(2)]


def test_another_hook_on_a_bypassed_attention_is_refused_as_before():
    case = next(case for case in PLAIN if case.name == "paddleclas-plain")
    model = case.patched(depth=2, r=8)
    hook = model.blocks[0].attn.register_forward_post_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"\(Attention\) has a forward hook"):
        paddle.summary(model, (2, 3, 32, 32), dtypes="float64")
    hook.remove()
    model(case.tensors())  # the remains of paddle.summary do no harm


def test_a_trimmed_last_block_has_a_summary(capsys):
    case = next(case for case in PLAIN if case.name == "paddleclas-plain")
    model = case.patched(depth=2, r=8, trim_last=True)
    assert summary(model, capsys)[1] == summary(case.model(depth=2), capsys)[1]
