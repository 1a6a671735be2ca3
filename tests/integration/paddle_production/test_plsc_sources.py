"""``benchmarks/plsc_sources.py`` on small sources with PLSC's names: what is right, and what is not."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scripts import load_script

from paddle_production.models import ROOT

SCRIPT = ROOT / "benchmarks" / "plsc_sources.py"
TWINS = ROOT / "tests" / "integration" / "vits" / "twins" / "passl" / "models"

#: What the twins leave out: they are never loaded from files.
LOADING = """

def load_pretrained(self, path):
    self.set_state_dict({weights})


{cls}.load_pretrained = load_pretrained
"""
EXAMPLE = """

def ViT_base_patch16_224():
    return VisionTransformer(embed_dim=32, depth=2, num_heads=4, qkv_bias=True)
"""
#: PLSC's imports of a module that Paddle 3 does not have.
FLUID = """
import paddle.fluid
from paddle.fluid import core, unique_name
from paddle.fluid.framework import EagerParamBase
"""
LOGGER = "def init_logger(log_level):\n    pass\n"
OWN = """
from tomecore.adapters import paddle as tome


def apply_patch(model, prop_attn=False):
    assert not model.global_pool or hasattr(model, "fc_norm")
    tome.apply_patch(model, prop_attn={prop_attn})
"""


def sources(folder, weights='paddle.load(path + ".pdparams")', prop_attn="prop_attn"):
    """A tree like PLSC's at ``folder``; the arguments are code that may be wrong."""
    models = folder / "plsc" / "models"
    (models / "utils").mkdir(parents=True)
    (folder / "plsc" / "utils").mkdir()
    (folder / "plsc" / "utils" / "logger.py").write_text(LOGGER)
    for name, cls in (("vision_transformer", "VisionTransformer"), ("mae", "MAEVisionTransformer"),
                      ("deit", "DeitVisionTransformer")):  # fmt: skip
        text = (TWINS / f"{name}.py").read_text().replace("vits.twins.passl", "plsc")
        text = text.replace("import paddle\n", "").replace(
            "\nfrom paddle", "\nimport paddle\nfrom paddle", 1
        )
        (models / f"{name}.py").write_text(text + LOADING.format(weights=weights, cls=cls))
    with (models / "vision_transformer.py").open("a") as file:
        file.write(EXAMPLE)
    (models / "__init__.py").write_text(FLUID)
    (models / "utils" / "tome.py").write_text(OWN.format(prop_attn=prop_attn))
    return folder


def ran(path, *more):
    command = [sys.executable, str(SCRIPT), str(path), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(text):
    lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[1:]}


def test_sources_that_are_served(tmp_path):
    path, output = sources(tmp_path / "PLSC"), tmp_path / "result.md"
    done = ran(path, "--commit", "1234567", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    text = output.read_text()
    assert text.strip() in done.stdout
    assert "PLSC at 1234567; tomecore" in text
    assert str(tmp_path) not in text
    rows = rows_of(text)
    assert len(rows) == 6
    assert {row["passed"] for row in rows.values()} == {"yes"}
    assert {row["r = 0"] for row in rows.values()} == {"identical"}
    assert rows["DeiT, distilled"]["tokens, r = 16"] == "50 34 18 10"
    assert float(rows["ViT"]["own ToMe, r = 8"]) == 0
    assert rows["its README's example, ViT-B/16"]["tokens, r = 16"] == "181 165"


def test_what_is_wrong_is_named(tmp_path):
    """Weights that are not read, and a ToMe that computes something else."""
    done = ran(sources(tmp_path, weights="{}", prop_attn="not prop_attn"))
    assert done.returncode == 1
    rows = rows_of(done.stdout)
    assert rows["MAE, finetuned"]["passed"].startswith("weights came back through load_pretrained")
    assert "as its own ToMe, prop_attn=False" in rows["ViT"]["passed"]
    assert "ToMe" not in rows["DeiT, distilled"]["passed"]


@pytest.mark.parametrize("kind", ["missing", "empty", "inner"])
def test_another_folder(kind, tmp_path):
    if kind == "inner":
        (tmp_path / "models").mkdir()
    path = tmp_path / "nowhere" if kind == "missing" else tmp_path
    done = ran(path)
    assert done.returncode == 1
    assert "`path` must be a checkout of PLSC or PASSL, a folder with plsc/models" in done.stderr
    held = {"missing": "no folder", "empty": "nothing", "inner": "models"}[kind]
    assert f"is or holds: {held}" in done.stderr


def test_what_is_not_installed(tmp_path):
    with (sources(tmp_path) / "plsc" / "models" / "__init__.py").open("a") as file:
        file.write("import never_installed\n")
    done = ran(tmp_path)
    assert done.returncode == 1
    assert "plsc does not import: No module named 'never_installed'. Install what" in done.stderr


def test_what_no_number_describes_is_infinitely_wrong():
    difference, ones = load_script("benchmarks/plsc_sources.py").difference, np.ones((2, 3))
    assert difference(ones, ones) == 0
    assert difference(3 * ones, 2 * ones) == 0.5
    assert difference(ones[:1], ones) == difference(ones * np.nan, ones) == np.inf
