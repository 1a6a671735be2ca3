"""The scripts of ``benchmarks/``, at sizes where speed says nothing: the numbers' bookkeeping."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from bench_models import loaded, small
from PIL import Image
from scripts import load_script

import tomecore.adapters.paddle
import tomecore.adapters.torch


def test_the_published_form_merges_the_same(rng: np.random.Generator) -> None:
    """The baseline is only fair if it does the same thing."""
    published = load_script("benchmarks/published_form.py").published_form
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
    matrix = load_script("benchmarks/matrix.py")
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
    reasons = "below 93 % of free-drop, slower than unpatched, slower than the published form (0.80x of the"
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
    core = load_script("benchmarks/core.py")
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


def test_many_tokens(tmp_path: Path) -> None:
    """Memory is that of the call, without the keys."""
    script, path = load_script("benchmarks/many_tokens.py"), tmp_path / "many.json"
    sizes = ["--sources", "30", "12000", "--destinations", "3000", "--width", "8"]
    command = [sys.executable, script.__file__, *sizes, "--json", str(path)]
    # A process of its own: memory that earlier tests have freed would be used again.
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cells = json.loads(path.read_text())["cells"]
    found = [(cell["library"], cell["tokens"], cell["sources"]) for cell in cells]
    assert found == [
        (name, 3000 + sources, sources) for name in ("numpy", "torch") for sources in (30, 12000)
    ]
    for few, many in (cells[:2], cells[2:]):
        assert few["megabytes"] < 50 < many["megabytes"] < 200  # a chunk is 64 MiB
        assert many["megabytes_of_keys"] == 15000 * 8 * 4 / 1e6
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.graph
def test_exported_files_are_timed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, path = load_script("benchmarks/onnx_files.py"), tmp_path / "new" / "files.json"
    monkeypatch.setattr(
        script, "MODELS", {"dinov2-small": lambda: script.load("timm:test_vit", resolution=224)}
    )
    arguments = ["--json", str(path), "--files", str(tmp_path / "files"), "--only", "dinov2-small"]
    given = ["onnx_files.py", *arguments, "--seconds", "0", "--batches", "1", "2"]
    monkeypatch.setattr(sys, "argv", given)
    script.main()
    cells = json.loads(path.read_text())["cells"]
    assert [(cell["threads"], cell["batch"], cell["rounds"]) for cell in cells] == [
        (1, 1, 5),
        (1, 2, 5),
    ]
    for cell in cells:
        assert 2 <= cell["limit"] < 2.1
        assert cell["limit_share"] == cell["speedup"] / cell["limit"]
        assert set(cell["images_per_second"]) == {"torch.onnx.export", "unmerged", "merged"}
        assert cell["speedup_from_torch"] > 0
        assert cell["difference"] < 1e-4
    arrays = {f"x_{name}": np.zeros((12, 32, 32, 3), np.uint8) for name in ("probe", "test")}
    arrays["x_test"] += np.arange(12, dtype=np.uint8)[:, None, None, None] * 20
    np.savez(tmp_path / "c.npz", y_probe=np.arange(12), y_test=np.arange(12) // 6, **arrays)
    cifar = ["--cifar", str(tmp_path / "c.npz"), "--images", "12", "--int8"]
    monkeypatch.setattr(sys, "argv", [*given, *cifar])
    monkeypatch.setattr(script, "nearest", lambda q, i, k: np.tile(np.arange(k), (len(q), 1)))
    script.main()  # measures no cell again
    found = json.loads(path.read_text())
    assert found["cells"] == cells
    same = found["recall"]["unmerged in merged"]
    assert (same["recall@1"], same["recall@10"]) == (1, 1)
    assert (same["class@1"], same["class@10"]) == (
        0.5,
        0.5,
    )  # of 10 images, 6 are of the first class
    assert set(found["int8"]["cosine"]) == {"unmerged", "merged", "unmerged int8", "merged int8"}
    assert "an index of merged embeddings" in capsys.readouterr().out


def test_forms_of_attention_are_written_as_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms, path = load_script("benchmarks/attention_forms.py"), tmp_path / "new" / "forms.json"
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
    forms, path = load_script("benchmarks/attention_forms_paddle.py"), tmp_path / "forms.json"
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
