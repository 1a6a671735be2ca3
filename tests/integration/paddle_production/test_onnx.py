"""``paddle.onnx.export`` of models that merge, run by onnxruntime at other batch sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from paddle_production.models import CLAS
from tomecore.adapters import paddle as tome
from tomecore.adapters.hosts import paddle_programs
from tomecore.backends import paddle as backend

#: where the test helpers are: the folders of tests, and of tests of real libraries
PATHS = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

#: kinds of model, traced before by to_static, and by opset 9, the default of paddle.onnx.export
NAMES = [
    "paddle-plain trim",
    "paddleclas-plain traced",
    "paddleclas-distilled 9",
    "foundation-beit",
    "paddlenlp-clip",
]


@pytest.fixture(scope="module")
def results():
    """In a process of their own: where paddle2onnx knows an operation not, it aborts."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("onnx_export.py")), *NAMES],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, *sys.path])},
        cwd=PATHS[0],
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return {line["name"]: line for line in lines}, done


@pytest.mark.parametrize("name", NAMES)
def test_exported_models_compute_the_same(name, results):
    """Images of equal patches among them, of which many merge into one token."""
    found, done = results
    assert name in found, (done.returncode, done.stderr[-2000:])
    assert found[name]["off"] < 1e-5
    # onnxruntime adds updates of ScatterND on several threads, and loses some where they meet.
    assert found[name]["scatters"] == ["ScatterElements"]


@pytest.fixture
def exporting(monkeypatch):
    """As if ``paddle.onnx.export`` called."""
    monkeypatch.setitem(sys.modules, "paddle2onnx", sys.modules[__name__])
    scope = {"__name__": "paddle2onnx.convert"}
    exec("def call(function, *given):\n    return function(*given)", scope)
    return scope["call"]


def test_an_export_is_seen_on_the_stack(exporting):
    assert not backend.exporting_onnx()
    assert exporting(backend.exporting_onnx)


def test_saving_drops_programs_for_onnx_only(exporting, tmp_path):
    """A public hook of ``paddle.jit.save`` in all but name; see ``watch_exports``."""
    model, images = CLAS.patched(depth=2, r=8), CLAS.tensors()
    assert paddle.jit.api._save_pre_hooks.count(paddle_programs.before_save) == 1
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float64")]
    program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    program(images)
    cache = program.forward.program_cache
    before = [op.name() for op in program.forward.main_program.global_block().ops]
    assert "pd_op.scatter" in before
    paddle.jit.save(program, str(tmp_path / "paddle"))
    assert [op.name() for op in program.forward.main_program.global_block().ops] == before
    exporting(paddle.jit.save, program, str(tmp_path / "onnx"))
    assert len(cache) == 1
    after = [op.name() for op in program.forward.main_program.global_block().ops]
    assert "pd_op.scatter" not in after
    assert "pd_op.put_along_axis" in after


def test_programs_of_other_models_are_left_alone(exporting, tmp_path):
    model = paddle.nn.Sequential(paddle.nn.Linear(4, 2))
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
    program(paddle.ones([2, 4]))
    exporting(paddle_programs.before_save, program, None, None)
    assert len(program.forward.program_cache) == 1
    tome.HOST.drop_traces(CLAS.patched(r=2))
