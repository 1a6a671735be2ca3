"""The Paddle scripts in ``benchmarks/`` run on a CPU, and can fail. What they time is not looked at."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from paddle_production.models import benchmark

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


@pytest.fixture
def device():
    yield paddle.get_device()
    paddle.set_device("cpu")


def test_the_gpu_script_on_a_cpu(tmp_path, device, capsys):
    script, path = benchmark("paddle_gpu"), tmp_path / "result.json"
    asked = ["--models", "tiny", "--batches", "2", "--r", "8", "--rounds", "4", "--json", str(path)]
    assert script.main(asked) == 0
    result = json.loads(path.read_text())
    assert result["machine"]["device"] == "cpu"
    assert {*result["checks"]} == {
        "float32 as on the CPU",
        "float32 twice the same bits",
        "static graph as dygraph",
        "gradients are finite",
    }
    assert all(check["passed"] for check in result["checks"].values())
    same = result["checks"]["float32 as on the CPU"]
    assert (same["images_alike"], same["difference"]) == ("4/4", 0.0)
    assert result["checks"]["float32 twice the same bits"]["same"]
    (cell,) = result["cells"]
    assert cell["images_per_second"].keys() == {"unpatched", "merging", "dropping"}
    assert cell["rounds"] == 3
    assert "ok   static graph as dygraph" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["numbers", "sizes", "infinite"])
def test_the_gpu_script_notices(wrong):
    script = benchmark("paddle_gpu")
    expected = {
        "output": np.ones((2, 3)),
        "sizes": np.full((2, 2), 2.0),
        "source": np.zeros((2, 4), dtype=int),
    }
    got = {name: array.copy() for name, array in expected.items()}
    assert script.compare(got, expected, 1e-3)["passed"]
    if wrong == "sizes":
        got["sizes"][0, 0] = 3
    else:
        got["output"][1, 1] += 0.01 if wrong == "numbers" else np.inf
    assert not script.compare(got, expected, 1e-3)["passed"]


def test_an_image_that_decided_otherwise_is_not_compared():
    script = benchmark("paddle_gpu")
    expected = {
        "output": np.ones((2, 3)),
        "sizes": np.full((2, 2), 2.0),
        "source": np.zeros((2, 4), dtype=int),
    }
    got = {name: array.copy() for name, array in expected.items()}
    got["output"][0], got["source"][0, 1] = 7, 1
    found = script.compare(got, expected, 1e-3)
    assert (found["passed"], found["images_alike"], found["difference"]) == (True, "1/2", 0.0)


def test_the_merge_script():
    """That its two forms agree is in ``test_plsc_defects.py``."""
    cell = benchmark("paddle_merge").measure(2, 4, 3, TINY)
    assert {*cell["median_seconds"]} == {"unpatched", "merging", "dropping", "flat", "strided"}
    assert 0 < cell["merge_share"] < 1
    assert 1 < cell["limit"] < 2
