"""The notebooks run, with few images, and their committed outputs are readable."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from scripts import load_script

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"TOME_IMAGES": "28", "TOME_ROUNDS": "1", "TOME_STEPS": "1", "OMP_NUM_THREADS": "1"}
#: machine paths, warnings and errors
NOISE = re.compile(r"/(?:home|root|tmp|work|usr|opt)/|Warning|Traceback|site-packages")

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/run_notebooks.py")


def texts(notebook):
    """(source, what was printed) of each code cell."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [out.get("text", "") for out in cell.outputs]
            found.append((cell.source, "".join(outputs)))
    return found


def pictures(notebook):
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs)


def test_both_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["paddle", "torch"]


@by_name
def test_it_runs(path, tool):
    notebook = tool.executed(path, SMALL)
    printed = "".join(text for _, text in texts(notebook))
    assert "r = 0 changes nothing: True" in printed
    assert "[184, 171, 158, 145, 132, 119, 106, 93, 80, 67, 54, 41]" in printed
    assert "top-1" in printed
    assert "free-drop" in printed
    assert "loss:" in printed
    assert printed.rstrip().endswith("False")  # the patch is off
    assert pictures(notebook) == 2


@by_name
def test_what_is_committed_can_be_read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for source, printed in texts(notebook):
        assert not NOISE.search(printed), source
    assert "r = 0 changes nothing: True" in "".join(text for _, text in texts(notebook))
    assert pictures(notebook) == 2
    kinds = [
        out.output_type
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell.outputs
    ]
    assert set(kinds) <= {"stream", "display_data"}
    assert len(path.read_bytes()) < 500_000


def test_the_same_cells_in_both_frameworks():
    """Only the framework differs, not the tour."""
    headings = [
        re.findall(r"(?m)^## .*$", "\n".join(c.source for c in nbformat.read(path, 4).cells))
        for path in NOTEBOOKS
    ]
    assert headings[0] == headings[1]


def test_noise_is_taken_out(tool):
    noisy = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "1",
                outputs=[
                    nbformat.v4.new_output("stream", name="stderr", text="/root/x: Warning"),
                    nbformat.v4.new_output("stream", name="stdout", text="1"),
                ],
            )
        ]
    )
    (kept,) = tool.cleaned(noisy).cells[0].outputs
    assert kept.text == "1"
