"""Law 8: whole models give the numbers of the published implementations."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.cases import golden_runs

TOLERANCE = 1e-11


def load(case, golden):
    """The golden model of the case's framework, with its arrays and runs."""
    arrays, config = golden(f"vit_{case.fw.name}")
    model = case.fw.double(case.golden(**config["model"]))
    start = "weights."
    weights = {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
    case.fw.load(model, weights)
    model.eval()
    return model, arrays, golden_runs(config)


def test_the_unpatched_model_is_the_published_one(plain, golden):
    model, arrays, _ = load(plain, golden)
    output = plain.fw.forward(model, arrays["image"])
    np.testing.assert_allclose(output, arrays["logits_unpatched"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("run", range(14))
def test_every_run(plain, golden, run):
    fw = plain.fw
    model, arrays, runs = load(plain, golden)
    assert len(runs) == 14
    name, r, prop_attn = runs[run]
    fw.tome.apply_patch(model, r=r, prop_attn=prop_attn, trace_source=True)
    output = fw.forward(model, arrays["image"])
    np.testing.assert_allclose(output, arrays[f"{name}.logits"], rtol=0, atol=TOLERANCE)
    assert np.array_equal(fw.numpy(model.tome.sizes), arrays[f"{name}.size"][:, :, 0])
    if fw.name == "torch":  # the Paddle reference does not trace
        source = arrays[f"{name}.source"].argmax(axis=1)
        assert np.array_equal(fw.numpy(model.tome.source), source)
