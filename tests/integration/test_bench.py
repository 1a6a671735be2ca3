"""``tomecore bench`` and what it stands on, at sizes where speed says nothing: the numbers' bookkeeping."""

from __future__ import annotations

import copy
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_models import SMALL, loaded, small
from PIL import Image
from typer.testing import CliRunner

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import benchmark, cli
from tomecore.backends.kernels.cpu import fused as fused_module
from tomecore.cli import _bench_tables, _output
from tomecore.errors import ArgumentValueError
from tomecore.schedule.arithmetic import arithmetic_of


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on a small model from a user's file."""
    (tmp_path / "mine.py").write_text(
        "from tomecore.loading.images import Preprocess\n"
        "from tomecore.models.torch import VisionTransformer\n"
        "def vit():\n"
        f"    return VisionTransformer(**{SMALL}), Preprocess((32, 32))\n"
        "def bare():\n"
        f"    return VisionTransformer(**{SMALL})\n"
        "def swin():\n"
        "    import torch\n"
        "    return torch.nn.Linear(2, 2)\n"
    )
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, model: str = "mine.py:vit") -> Any:
        given = ["bench", "--model", model, "--batch", "2", "--rounds", "2", *arguments]
        return CliRunner().invoke(cli.app, given, env={"COLUMNS": "200"})

    return run


@pytest.mark.parametrize("framework", ["torch", "paddle"])
@pytest.mark.parametrize("train", [False, True])
def test_a_measurement(framework: str, train: bool) -> None:
    model = loaded(framework)
    before = {name: np.asarray(value.numpy()) for name, value in model.model.state_dict().items()}
    found = benchmark.measure(model, 3, batch=2, rounds=3, train=train)
    assert (found.framework, found.tokens, found.tokens_left) == (framework, 17, 8)
    speed = found.images_per_second
    assert set(speed) == set(found.peak_bytes) == {"unpatched", "merging", "dropping"}
    assert min(speed.values()) > 0
    low, high = found.speedup_quartiles
    assert low <= found.speedup <= high
    patched = importlib.import_module(f"tomecore.adapters.{framework}").apply_patch(
        small(framework)
    )
    assert found.limit == arithmetic_of(patched).limit(17, 3) > 1
    assert found.limit_share == found.speedup / found.limit
    assert (found.merge_share is None) == train
    if not train:
        assert 0 < found.merge_share < 1
    json.dumps(found.as_dict())
    assert not hasattr(model.model, "tome")  # copies were patched
    for name, value in model.model.state_dict().items():
        np.testing.assert_array_equal(np.asarray(value.numpy()), before[name])


def test_the_three_forms_are_what_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by their outputs: the unpatched model, ours, and the one whose tokens are cut off."""
    calls: dict[str, Any] = {}

    def interleave(given: Any, rounds: int, **rest: Any) -> Any:
        calls.update(given)
        yield from [dict.fromkeys(given, 1.0)] * rounds

    monkeypatch.setattr(benchmark._measure, "interleave", interleave)
    model = loaded("torch")
    benchmark.measure(model, 3, batch=2, rounds=1)
    x = benchmark.place_of(model.model, "cpu", "float32").images(2, (3, 32, 32))
    patched = tomecore.adapters.torch.apply_patch(copy.deepcopy(model.model), r=3)
    with torch.inference_mode():
        torch.testing.assert_close(calls["unpatched"](), model.model(x), rtol=0, atol=0)
        torch.testing.assert_close(calls["merging"](), patched(x), rtol=0, atol=0)
        dropped = benchmark.free_drop(patched)(x)
        torch.testing.assert_close(calls["dropping"](), dropped, rtol=0, atol=0)
        assert not torch.equal(calls["dropping"](), calls["merging"]())


def test_to_static_and_compile() -> None:
    assert (
        benchmark.measure(loaded("paddle"), 3, batch=2, rounds=1, mode="to_static").merge_share
        is None
    )
    found = benchmark.place_of(small("torch"), "cpu", "float32")
    with pytest.raises(
        ArgumentValueError, match="'to_static' is for paddle; the model is in torch"
    ):
        found.compile_model(small("torch"), "to_static", (2, 3, 32, 32))
    with pytest.raises(ArgumentValueError, match="CUDA graphs need a GPU"):
        found.compile_model(small("torch"), "cudagraphs", (2, 3, 32, 32))


@pytest.mark.parametrize(
    ("framework", "device", "dtype", "message"),
    [
        ("torch", "cuda", "float32", "`device` is 'cuda', but torch finds no GPU here; use cpu"),
        ("torch", "gpu:0", "float32", "torch has no device 'gpu:0' here; .*cpu, cuda"),
        ("paddle", "cuda", "float32", "paddle has no device 'cuda' here; .*cpu, gpu"),
        ("paddle", "cpu", "bfloat16", "Paddle has no bfloat16 kernels on a CPU; use float32"),
    ],
)
def test_a_place_that_is_not_there(framework: str, device: str, dtype: str, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        benchmark.measure(loaded(framework), 3, device=device, dtype=dtype)


CALLS = {"matching", "merging", "keys: sum over heads"}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_a_profile_adds_up(framework: str, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(fused_module, "unavailable", lambda: "not wanted")
    found = benchmark.profile(loaded(framework), 3, batch=2, rounds=3)
    assert sum(found.parts.values()) == pytest.approx(found.merging - found.dropping)
    for part in ("match and merge in one go", "following tokens", "restore"):
        assert found.parts[part] > 0, part
    for part in CALLS:
        assert (found.parts[part] > 0) is not kernels, part


def test_the_command(run: Any, tmp_path: Path) -> None:
    result = run("--r", "2", "(3, -1)", "--json", "b.json", "--plot", "p.png", "--profile")
    assert result.exit_code == 0, result.output
    for text in ("speed-up", "limit", "free-drop", "merge", "17 tokens", "(3, -1)", "matching"):
        assert text in result.output
    written = json.loads((tmp_path / "b.json").read_text())
    assert [cell["r"] for cell in written["cells"]] == [2, [3, -1]]
    assert written["cells"][0]["images_per_second"]["merging"] > 0
    assert "matching" in written["cells"][0]["profile"]
    assert written["machine"]["torch"] == torch.__version__.partition("+")[0]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("arguments", "said", "kept"),
    [
        ((), "eager, forward\n", (False, True)),
        (("--trim-last",), "forward, the last block trimmed", (True, True)),
        (("--prop-attn", "off"), "forward, sizes not counted", (False, False)),
        (("--prop-attn", "column"), "forward, sizes by column", (False, "column")),
    ],
    ids=["default", "trimmed", "off", "column"],
)
def test_settings_of_the_patch(
    run: Any, tmp_path: Path, arguments: tuple[str, ...], said: str, kept: tuple[Any, Any]
) -> None:
    result = run("--r", "2", "--json", "b.json", "--profile", *arguments)
    assert result.exit_code == 0, result.output
    assert said in "\n".join(line.strip() for line in result.output.splitlines())
    (cell,) = json.loads((tmp_path / "b.json").read_text())["cells"]
    assert (cell["trim_last"], cell["prop_attn"]) == kept
    assert (cell["profile"]["attention with a bias"] == 0) == (not kept[1])


def test_a_table_has_the_width_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the moment when the command line was imported; a file has room for every column."""
    monkeypatch.setenv("COLUMNS", "50")
    assert (_output.console.width, _output.errors.width) == (50, 50)
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert _output.console.width == 120


@pytest.mark.parametrize(("high", "said"), [(1.24, False), (1.26, True)])
def test_rounds_that_differ_are_remarked(high: float, said: bool) -> None:
    remark = _bench_tables.remark_on([(1.5, 1.5), (1.0, high)])
    assert (remark is not None and "Measure again when it is idle" in remark) is said


def test_latency_is_batch_one(run: Any) -> None:
    result = CliRunner().invoke(
        cli.app,
        ["bench", "--model", "mine.py:vit", "--latency", "--r", "2", "--rounds", "1"],
        env={"COLUMNS": "200"},
    )
    assert result.exit_code == 0, result.output
    assert "ms per" in result.output
    result = run("--latency")
    assert result.exit_code == 2
    assert "leave --batch out" in result.output


def test_wrong_requests(run: Any, tmp_path: Path) -> None:
    result = run("--r", "sixteen")
    assert result.exit_code == 2
    assert "'sixteen' is not an r" in result.output
    (tmp_path / "folder").mkdir()
    assert "folder is a folder" in run("--json", "folder").output
    assert "must end in" in run("--plot", "picture.doc").output
    assert "there is no file" in str(run(model="nothing.py:vit").exception)
    assert "has no function 'nobody'" in str(run(model="mine.py:nobody").exception)
    assert "Linear" in str(run(model="mine.py:swin").exception)
