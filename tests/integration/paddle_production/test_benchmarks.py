"""The Paddle scripts in ``benchmarks/`` run on a CPU, and can fail. What they time is not looked at."""

from __future__ import annotations

import json
import os
from unittest import mock

import paddle
import pytest
from adapters.paddle_gpu import gpu
from scripts import load_script

from tomecore.adapters.hosts import paddle as paddle_host
from tomecore.adapters.hosts import paddle_attention as forms
from tomecore.adapters.hosts.paddle_attention import with_key_column, with_mask
from tomecore.backends import paddle as backend

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


CHECKS = [
    "check attention float32",
    "check model r 8 float32",
    "check model r [1, 8, 16] float32",
    "check model r [9, 15, 0] float32",
    "check twice float32",
    "check deterministic float32",
    "check static graph",
    "check gradients float32",
]


@pytest.fixture
def script():
    """The GPU script; what it sets for its own process is undone."""
    with mock.patch.dict(os.environ):
        yield load_script("benchmarks/paddle_gpu.py")
    paddle.set_device("cpu")


def lines(folder):
    return [json.loads(line) for line in (folder / "paddle_gpu.jsonl").read_text().splitlines()]


def test_the_gpu_script_on_a_cpu(script, tmp_path, capsys):
    assert script.main(["--tiny", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = {line["name"]: line for line in lines(tmp_path)}
    assert list(found) == ["machine", *CHECKS, "tiny batch 2 r 8 float32"]
    assert {line["status"] for line in found.values()} == {"done"}
    assert found["machine"]["device"] == "cpu"
    assert found["check twice float32"]["twice"] == 0
    assert found["check model r [9, 15, 0] float32"]["merges"] == 2
    cell = found["tiny batch 2 r 8 float32"]
    assert cell["images_per_second"].keys() == {"unpatched", "merging", "dropping"}
    assert cell["rounds"] == 3
    assert "summary:" in capsys.readouterr().out


def test_the_gpu_script_goes_on_after_a_cut(script, tmp_path):
    asked = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert script.main([*asked, "--seconds", "0"]) == 0
    found = {line["name"]: line["status"] for line in lines(tmp_path)}
    assert found.pop("machine") == "done"
    assert {*found.values()} == {"skipped"}
    path = tmp_path / "paddle_gpu.jsonl"
    done = [{"name": name, "status": "done", "kept": True} for name in CHECKS[1:]]
    text = "".join(json.dumps(line) + "\n" for line in done)
    path.write_text(text + json.dumps({"name": CHECKS[0], "status": "done"})[:-9])
    assert script.main([*asked, "--skip", str(path)]) == 0
    found = {line["name"]: line for line in lines(tmp_path)}
    assert [name for name, line in found.items() if "kept" in line] == CHECKS[1:]
    assert found[CHECKS[0]]["status"] == "done"
    assert "worst" in found[CHECKS[0]]


def test_a_failure_of_the_gpu_script_stays_one_until_it_has_run_again(script, tmp_path):
    before = tmp_path / "before.jsonl"
    before.write_text(
        json.dumps({"name": CHECKS[0], "status": "FAILED", "traceback": ["x"]}) + "\n"
    )
    asked = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--skip", str(before)]
    assert script.main([*asked, "--seconds", "0"]) == 1
    assert script.main([*asked, "--only", CHECKS[0]]) == 0


def test_without_a_gpu_the_script_says_what_to_do(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path)])
    assert "no CUDA device here; without one: --device cpu --tiny" in capsys.readouterr().err


def of_other_images(q, k, v, bias, *rest):
    """As the flash kernel of Paddle 3.3 read a mask of one row; a batch of one reads beyond it."""
    if bias is not None:
        bias = bias.roll(1, 0) if bias.shape[0] > 1 else bias * float("nan")
    return with_key_column(q, k, v, bias, *rest)


def without_sizes(q, k, v, bias, *rest):
    return with_mask(q, k, v, None, *rest)


def least_alike(x, axis=-1, descending=False, stable=True):
    return paddle.argsort(x, axis=axis, descending=not descending, stable=stable)


def overwritten(base, rows, updates):
    return base


#: a fault -> what it replaces, and the checks that must fail
PLANTED = {
    "other images' sizes": (forms.FORMS, "key column", of_other_images, {0, 1, 2, 3}),
    "no sizes": (forms.FORMS, "key column", without_sizes, {0, 1, 2, 3}),
    "the least alike merge": (vars(backend), "argsort", least_alike, {1, 2, 3}),
    "merged tokens are lost": (vars(backend.BACKEND), "accumulate", overwritten, {1, 2, 3}),
    "sizes are lost": (vars(backend.BACKEND), "accumulate_2d", lambda b, *_: b, {1, 2, 3}),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_gpu_script_notices(planted, script, tmp_path, monkeypatch):
    where, name, fault, checks = PLANTED[planted]
    monkeypatch.setattr(script.Bench, "expected", remembered(script))
    monkeypatch.setitem(where, name, fault)
    asked = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert script.main(asked) == 1
    failed = {line["name"] for line in lines(tmp_path) if line["status"] == "FAILED"}
    assert {CHECKS[check] for check in checks} <= failed


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wrong", [False, True])
def test_the_gpu_script_notices_a_mask_of_one_row(wrong, dtype, script, monkeypatch):
    """On an emulated GPU: the earlier arguments of tomecore fail in every dtype."""
    if wrong:
        monkeypatch.setattr(paddle_host, "form_of", lambda *_: "mask")
    bench = script.Bench("cpu")
    with gpu((8, 0)):
        line = script.ran(script.Item("attention", 1, lambda: bench.attention(dtype)))
    assert line["status"] == ("FAILED" if wrong else "done"), line


def remembered(script):
    """Return the reference without the fault, which a CPU would share here."""
    bench = script.Bench("cpu")
    found = {
        (r if isinstance(r, int) else tuple(r)): bench.expected("tiny", 3, r)
        for r in (0, *script.CHECKED["tiny"])
    }
    return lambda self, name, batch, r: found[r if isinstance(r, int) else tuple(r)]


def test_numbers_that_are_none_are_no_small_difference(script):
    with pytest.raises(AssertionError, match=r"block 3: nan, above 0\.1"):
        script.within(0.1, **{"block 3": float("nan")})


def test_the_merge_script():
    """That its two forms agree is in ``test_plsc_defects.py``."""
    cell = load_script("benchmarks/paddle_merge.py").measure(2, 4, 3, TINY)
    assert {*cell["median_seconds"]} == {"unpatched", "merging", "dropping", "flat", "strided"}
    assert cell["merge_share"] > 0  # of times, which are compared in benchmarks only
    assert 1 < cell["limit"] < 2
