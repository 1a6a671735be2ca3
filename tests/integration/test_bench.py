"""``tomecore bench`` and what it stands on, at sizes where speed says nothing: the numbers' bookkeeping."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore import benchmark, cli
from tomecore.arithmetic import arithmetic_of
from tomecore.backends import _fused
from tomecore.errors import ArgumentValueError, NotPatchedError
from tomecore.images import Preprocess
from tomecore.loading import Loaded

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def small(framework: str) -> Any:
    module = importlib.import_module(f"tomecore.models.{framework}")
    model = module.VisionTransformer(**SMALL)
    model.eval()
    return model


def loaded(framework: str) -> Loaded:
    return Loaded(f"small {framework}", small(framework), Preprocess((32, 32)))


def script(name: str) -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec: Any = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on a small model that a file of the user's makes."""
    (tmp_path / "mine.py").write_text(
        "from tomecore.images import Preprocess\n"
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
    x = benchmark._devices.place_of(model.model, "cpu", "float32").images(2, (3, 32, 32))
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
    found = benchmark._devices.place_of(small("torch"), "cpu", "float32")
    with pytest.raises(ArgumentValueError, match="'to_static' is paddle's; the model is torch's"):
        found.compiled(small("torch"), "to_static", (2, 3, 32, 32))
    with pytest.raises(ArgumentValueError, match="CUDA graphs need a GPU"):
        found.compiled(small("torch"), "cudagraphs", (2, 3, 32, 32))


@pytest.mark.parametrize(
    ("framework", "device", "dtype", "message"),
    [
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
        monkeypatch.setattr(_fused, "unavailable", lambda: "not wanted")
    found = benchmark.profile(loaded(framework), 3, batch=2, rounds=3)
    assert sum(found.parts.values()) == pytest.approx(found.merging - found.dropping)
    for part in ("match and merge in one go", "following tokens", "restore"):
        assert found.parts[part] > 0, part
    for part in CALLS:
        assert (found.parts[part] > 0) is not kernels, part


def test_a_profile_leaves_no_trace() -> None:
    from tomecore.adapters import _block, _reduce

    def watched() -> list[Any]:
        of_reduce = [_reduce.in_one_go, _reduce.matched, _reduce.merged_mean]
        return [*of_reduce, _block.key_bias, _block.take_rows]

    before = watched()
    benchmark.profile(loaded("torch"), 3, batch=2, rounds=1)
    assert watched() == before


def test_the_command(run: Any, tmp_path: Path) -> None:
    result = run("--r", "2", "(3, -1)", "--json", "out/b.json", "--plot", "p.png", "--profile")
    assert result.exit_code == 0, result.output
    for text in ("speed-up", "limit", "free-drop", "merge", "17 tokens", "(3, -1)", "matching"):
        assert text in result.output
    written = json.loads((tmp_path / "out" / "b.json").read_text())
    assert [cell["r"] for cell in written["cells"]] == [2, [3, -1]]
    assert written["cells"][0]["images_per_second"]["merging"] > 0
    assert "matching" in written["cells"][0]["profile"]
    assert written["machine"]["torch"] == torch.__version__.partition("+")[0]
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 300


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


def test_the_published_form_merges_the_same(rng: np.random.Generator) -> None:
    """The baseline is only fair if it does the same thing."""
    published = script("published_form").published_form
    image = rng.normal(size=(2, 3, 32, 32))
    model = small("torch").double()
    ours = tomecore.adapters.torch.apply_patch(copy.deepcopy(model), r=3)
    x = torch.from_numpy(image)
    with torch.no_grad():
        torch.testing.assert_close(published(model, 3)(x), ours(x), rtol=1e-12, atol=1e-12)
    model = small("paddle").to(dtype="float64")
    patched = tomecore.adapters.paddle.apply_patch(copy.deepcopy(model), r=3)
    given = paddle.to_tensor(image)
    with paddle.no_grad():
        found, expected = published(model, 3)(given).numpy(), patched(given).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_matrix(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = script("matrix")
    assert len(matrix.FULL) == 90
    path = tmp_path / "cells.json"
    monkeypatch.setattr(matrix, "load", lambda name, resolution: loaded(name.partition(":")[0][:6]))
    monkeypatch.setitem(matrix.FRAMEWORKS, "torch", ("torch:{}", ("float32",)))
    monkeypatch.setattr(matrix, "SHORT", [("torch", "tiny", 32, 2, 3, "float32")])
    arguments = ["matrix.py", "--seconds", "0", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    matrix.main()
    cells = json.loads(path.read_text())["cells"]
    assert [cell["cell"] for cell in cells] == [["torch", "tiny", 32, 2, 3, "float32"]]
    forms = {"unpatched", "merging", "dropping", "published", "shorter"}
    assert set(cells[0]["images_per_second"]) == forms
    assert set(cells[0]["ahead"]) == {"published", "shorter"}
    first = path.read_text()
    matrix.main()  # it has them all
    assert path.read_text() == first
    monkeypatch.setattr(sys, "argv", [*arguments, "--rounds", "5"])
    for _ in range(2):  # in more rounds, and then it has that
        matrix.main()
        again = json.loads(path.read_text())["cells"]
        assert [(cell["cell"], cell["rounds"]) for cell in again] == [(cells[0]["cell"], 5)]
        assert path.read_text() != first
    path.write_text(first)
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--show", str(path)])
    matrix.main()
    shown = capsys.readouterr().out
    assert shown.count("1 cells: of free-drop") == 5
    cells[0] |= {"drop_share": 0.5, "speedup": 0.9, "ahead": {"published": 0.8, "shorter": 1.0}}
    cells[0]["profile"] = {
        "merging": 3e-3,
        "dropping": 1e-3,
        "parts": {"restore": 5e-4, "merging": 1.5e-3},
    }
    missing = tmp_path / "missing.json"
    missing.write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--show", str(missing), "--missed"])
    matrix.main()
    shown = capsys.readouterr().out
    reasons = (
        "below 93 % of free-drop, slower than unpatched, behind the published form (0.80x of the"
    )
    assert reasons in shown
    assert "2000 us over 1000 us of free-drop: merging 1500, restore 500" in shown
    cells[0] |= {"drop_share": 0.95, "speedup": 1.1, "ahead": {"published": 1.0, "shorter": 1.0}}
    missing.write_text(json.dumps({"cells": cells}))
    matrix.main()
    assert "of free-drop:" not in capsys.readouterr().out
    picture = tmp_path / "speed.png"
    again = ["matrix.py", "--show", str(path), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", again)
    matrix.main()
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    monkeypatch.setattr(sys, "argv", [*again, "--only", "nothing"])
    with pytest.raises(SystemExit, match="draws one model; --only leaves 0"):
        matrix.main()


def test_the_core_alone(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = script("core")
    monkeypatch.setattr(core, "TOKENS", (19,))
    monkeypatch.setattr(core, "WIDTHS", (8,))
    path = tmp_path / "core.json"
    monkeypatch.setattr(sys, "argv", ["core.py", "--rounds", "1", "--json", str(path)])
    core.main()
    cells = json.loads(path.read_text())["cells"]
    assert [cell["library"] for cell in cells] == ["numpy", "torch", "paddle", "jax"]
    for cell in cells:
        kernels = {"in one go"} if cell["library"] in ("torch", "paddle") else set()
        assert set(cell["milliseconds"]) == {"match", "merge", "unmerge", "x + 1", *kernels}
        assert min(cell["nanoseconds_per_unit"].values()) > 0
    assert "unmerge" in capsys.readouterr().out


def test_free_drop_needs_a_patched_model() -> None:
    with pytest.raises(NotPatchedError, match="call apply_patch first"):
        benchmark.config_of_patched(torch.nn.Linear(1, 1))


def test_forms_of_attention_are_written_as_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms, path = script("attention_forms"), tmp_path / "new" / "forms.json"
    shape = ["--tokens", "9", "--rounds", "1", "--dtype", "float32", "bfloat16"]
    forms.main([*shape, "--note", "a test", "--json", str(path)])
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert (found["note"], found["device"]) == ("a test", "cpu")
    assert torch.__version__.startswith(found["machine"]["torch"])
    assert [cell["dtype"] for cell in found["cells"]] == ["float32"] * 6 + ["bfloat16"] * 6
    cell = found["cells"][0]
    assert list(cell["error"]) == [name for name in forms.FORMS if name != "plain"]
    assert all(error < 1e-5 for error in cell["error"].values())
    used = cell["kernel"]
    assert used["plain"] == used["key bias"] == used["key column"] == "flash_attention_for_cpu"
    assert used["products"] == ""
    forms.main(["--show", str(path)])
    assert capsys.readouterr().out == printed


def test_forms_of_attention_in_paddle(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms, path = script("attention_forms_paddle"), tmp_path / "forms.json"
    monkeypatch.setattr(forms, "SHAPES", [(1, 2, 5), (2, 1, 9)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(
        sys, "argv", ["forms.py", "--rounds", "3", "--threads", "1", "--json", str(path)]
    )
    forms.main()
    found = json.loads(path.read_text())
    assert [one["shape"] for one in found["shapes"]] == [[1, 2, 5], [2, 1, 9]]
    assert all(one["mask"] > 0 and one["column"] > 0 for one in found["shapes"])
    assert found["threads"] == 1
    assert "processor" in found["machine"]
    assert capsys.readouterr().out.count("\n") == 3
