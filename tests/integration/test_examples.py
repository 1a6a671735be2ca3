"""Each example runs, on few images, and does what it says. ``custom_block.py`` is run by
``tests/adapters/test_own_blocks.py``."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tomecore import backends

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMEWORKS = pytest.mark.parametrize("framework", ["torch", "paddle"])


def example(name):
    return runpy.run_path(str(EXAMPLES / name))


def test_every_example_has_a_test():
    tested = {"custom_block.py", "custom_backend.py", "dense_features.py"}
    tested |= {"finetune_torch.py", "finetune_paddle.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


@FRAMEWORKS
def test_fine_tuning(framework, tmp_path, capsys):
    path = tmp_path / "results" / "found.json"
    path.parent.mkdir()
    path.write_text('{"another": 1}')
    main = example(f"finetune_{framework}.py")["main"]
    main(["--speedups", "5", "--images", "32", "--batch", "16", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["another"] == 1  # what was there stays
    unpatched, merging = found[framework]["rows"]
    assert (unpatched["speedup"], merging["speedup"]) == (1.0, 5.0)
    assert unpatched["r"] == []
    assert 197 - sum(merging["r"]) == merging["tokens_left"] == 2
    for row in (unpatched, merging):
        assert row["off_the_shelf"] > 0.9
        assert row["finetuned"] > 0.9
    assert found[framework]["images"] == 32
    assert "32 digits to train on, 32 held out" in capsys.readouterr().out


@FRAMEWORKS
def test_fine_tuning_changes_the_weights(framework):
    """The rows differ by training, not by running the same model twice."""
    import numpy as np

    from tomecore import loading
    from tomecore.frameworks import predict
    from tomecore.models import digits

    names = example(f"finetune_{framework}.py")
    images, labels = (array[:16] for array in digits.load("train"))
    model = loading.load(f"digits:{framework}").model
    before = predict(model, images)
    names["finetune"](model, images, labels, epochs=2, batch=8, lr=1e-3, seed=0)
    after = predict(model, images)
    assert np.abs(after - before).max() > 0.1
    assert not model.training


def test_the_same_in_both_frameworks():
    """The two scripts differ in their training step: the same settings, images and rows around it."""
    torch, paddle = (
        (EXAMPLES / f"finetune_{name}.py")
        .read_text()
        .partition("def run(")[2]
        .replace(name, "NAME")
        for name in ("torch", "paddle")
    )
    assert torch == paddle


@FRAMEWORKS
def test_dense_features(framework, capsys):
    example("dense_features.py")["main"](["--framework", framework, "--images", "12"])
    said = capsys.readouterr().out
    assert "(12, 96, 14, 14)" in said
    rows = [
        line.split() for line in said.splitlines() if line.strip()[:2] in ("0 ", "8 ", "13", "15")
    ]
    assert [row[:2] for row in rows] == [["0", "197"], ["8", "101"], ["13", "41"], ["15", "17"]]
    right = [float(row[2].rstrip("%")) for row in rows]
    assert right[0] > 90
    assert all(one > 80 for one in right)
    assert "block 5: (8, 96, 14, 14)" in said


def test_custom_backend(capsys, monkeypatch):
    monkeypatch.setattr(backends, "_known", dict(backends._known))
    example("custom_backend.py")["main"]()
    said = capsys.readouterr().out
    assert "197 -> 181 of MyArray" in said
    assert "to the last bit: True" in said
    assert "sizes sum to the tokens there were: 197.0" in said
    assert "scatters by mylib: 3" in said
    backends._by_type.clear()


def test_an_example_is_a_script():
    """Run as its own first lines say."""
    path = EXAMPLES / "custom_backend.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert "scatters by mylib: 3" in done.stdout
