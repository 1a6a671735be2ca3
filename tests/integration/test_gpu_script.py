"""``benchmarks/gpu.py`` on a CPU, so that it works the first time it gets a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
#: what a machine with a GPU need not have
ABSENT = ("paddle", "jax", "numba", "typer", "rich", "matplotlib", "sklearn", "transformers")
RUN = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv[0] = {str(SCRIPT)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
#: fault -> a program that plants it, and the message of the failed check
FAULTS = {
    "tokens": (
        "mean = reduce.weighted_mean\n"
        "reduce.weighted_mean = lambda *given: (lambda x, s: (x * 1.001, s))(*mean(*given))",
        "merged tokens: ",
    ),
    "sizes": (
        "mean = reduce.weighted_mean\n"
        "reduce.weighted_mean = lambda *given: (lambda x, s: (x, s + 1))(*mean(*given))",
        "sizes: ",
    ),
    "partners": (
        "plans = reduce.match_bipartite\n"
        "def wrong(*given):\n"
        "    plan = plans(*given)\n"
        "    plan.into[:] = plan.into[:, :1]\n"
        "    return plan\n"
        "reduce.match_bipartite = wrong",
        "lost cosine: ",
    ),
}


def run(out: Path, *options: str, fault: str = "") -> tuple[int, list[dict[str, Any]]]:
    """Run the tiny form on the CPU; its exit status and its lines."""
    command = [sys.executable, "-c", fault + RUN, "--device", "cpu", "--tiny", "--out", str(out)]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.returncode, [
        json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[dict[str, Any]]]:
    """A whole run: its file, its exit status and its lines."""
    out = tmp_path_factory.mktemp("gpu")
    return out / "gpu.jsonl", *run(out, "--seconds", "10000")


def test_everything_that_a_cpu_can_do_is_done(whole: Any) -> None:
    _, status, lines = whole
    assert [line for line in lines if line["status"] == "FAILED"] == []
    assert status == 0
    assert len({line["name"] for line in lines}) == len(lines)
    skipped = {line["name"]: line["why"] for line in lines if line["status"] == "skipped"}
    for name, why in skipped.items():
        kernels = name.startswith(("check EFFICIENT", "check CUDNN"))
        assert why.startswith("torch has none: No viable" if kernels else "needs a GPU"), name
    done = [line["name"] for line in lines if line["status"] == "done"]
    assert len(skipped) + len(done) == len(lines)
    for part in ("golden", "float64", "bfloat16", "FLASH", "MATH", "dtypes", "compiled"):
        assert any(name.startswith("check ") and part in name for name in done), part
    speeds = [line for line in lines if "speedup" in line]
    assert len(speeds) == 18
    for line in speeds:
        assert line["images_per_second"].keys() >= {"unpatched", "merging", "dropping", "column"}


def test_a_run_that_was_cut_goes_on(whole: Any, tmp_path: Path) -> None:
    path, _, lines = whole
    text = path.read_text().splitlines(keepends=True)
    kept = [line for line in text[:-5] if json.loads(line)["status"] == "done"]
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(text[:-5]) + text[-5][:30])
    status, again = run(tmp_path, "--seconds", "10000", "--skip", str(cut))
    assert status == 0
    assert (tmp_path / "gpu.jsonl").read_text().startswith("".join(kept))
    ran = [line["name"] for line in again[len(kept) :] if line["status"] == "done"]
    assert ran == ["machine", "attention 197", "attention 101", "attention 577"]
    assert {line["name"] for line in again} == {line["name"] for line in lines}


def test_what_no_time_is_left_for_is_skipped(tmp_path: Path) -> None:
    status, lines = run(tmp_path, "--seconds", "0")
    assert status == 0
    assert [line["name"] for line in lines if line["status"] == "done"] == ["machine"]
    reasons = {line["why"] for line in lines if line["name"] == "check float64"}
    assert reasons == {"needs 10 s, and 0 are left"}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_fails(fault: str, message: str, tmp_path: Path) -> None:
    fault = f"import tomecore.adapters.engine.reduce as reduce\n{fault}\n"
    status, lines = run(tmp_path, "--only", "check float32", fault=fault)
    assert status == 1
    (line,) = [line for line in lines if line["name"] == "check float32"]
    assert line["status"] == "FAILED"
    assert message in line["traceback"][-1]


def test_a_failure_stays_one_until_it_has_run_again(tmp_path: Path) -> None:
    before = tmp_path / "before.jsonl"
    before.write_text('{"name": "check float32", "status": "FAILED", "traceback": ["wrong"]}\n')
    assert run(tmp_path, "--seconds", "0", "--skip", str(before))[0] == 1
    again = "--skip", str(before), "--only", "check float32"
    assert run(tmp_path, *again)[0] == 0


def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 2
    assert "torch finds no CUDA device here; without one: --device cpu --tiny" in ended.stderr
