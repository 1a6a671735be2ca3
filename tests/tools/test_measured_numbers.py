"""The numbers of README.md and docs/speed.md are those of the files in benchmarks/results."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
from scripts import ROOT

RESULTS = ROOT / "benchmarks" / "results"
SPEED = ROOT / "docs" / "speed.md"
FILES = {
    "DINOv2 ViT-S/14": "dinov2-small",
    "CLIP ViT-B/32": "clip-b32",
    "CLIP ViT-B/16": "clip-b16",
    "SigLIP 2 B/16, 256": "siglip2-b16-256",
    "SigLIP 2 B/16, 384": "siglip2-b16-384",
    "CLIP ViT-L/14, 336": "clip-l14-336",
}
SIZES = {"ViT-Ti": "tiny", "ViT-S": "small", "ViT-B": "base"}
COLUMNS = [("torch", "float32"), ("torch", "bfloat16"), ("paddle", "float32")]


def cells_of(name: str) -> list[dict[str, Any]]:
    content = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    cells: list[dict[str, Any]] = content["cells"]
    return cells


def rows(page: Any, header: str) -> list[list[str]]:
    """The cells of each row of the table with this first column."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    raise AssertionError(f"the table {header} does not end")


@pytest.fixture(scope="module")
def cpu() -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(cell["cell"]): cell for cell in cells_of("cpu.json")}


def test_the_table_of_models(cpu: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    found = rows(SPEED, "model")
    assert len(found) == 13
    for model, r, left, limit, *speedups in found:
        name, side = model.split(", ")
        measured = [
            cpu[framework, SIZES[name], int(side), 8, int(r), dtype] for framework, dtype in COLUMNS
        ]
        assert [f"{cell['speedup']:.2f}x" for cell in measured] == speedups, model
        assert {str(cell["tokens_left"]) for cell in measured} == {left}, model
        assert f"{measured[0]['limit']:.2f}x" == limit, model


def test_the_sentences_about_all_of_them(cpu: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    text = " ".join(SPEED.read_text(encoding="utf-8").split())
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    speedups = [cell["speedup"] for cell in cpu.values()]
    assert f"All {len(cpu)} measurements" in text
    assert f"Their median speed-up is {statistics.median(speedups):.2f}x" in text
    slower = [key for key, cell in cpu.items() if cell["speedup"] < 1]
    assert slower == [("torch", "tiny", 224, 1, 8, "bfloat16")]
    assert f"({min(speedups):.2f}x)" in text
    alone = [cpu[framework, "small", 224, 1, 13, "float32"] for framework in ("torch", "paddle")]
    torch, paddle = (f"{cell['speedup']:.2f}" for cell in alone)
    assert f"{torch} times as fast in torch and {paddle} times in Paddle" in text
    claimed = [
        cpu[framework, size, 224, 8, 13, dtype]["speedup"]
        for framework, dtype in COLUMNS
        for size in ("small", "base")
    ]
    low, high = min(claimed), max(claimed)
    assert f"[{low:.1f} to {high:.1f} times as fast](docs/speed.md#vit-ti-s-and-b)" in readme


def test_the_exported_files() -> None:
    cells = {
        (cell["model"], cell["runtime"], cell["batch"]): cell
        for cell in cells_of("onnx-cpu.json")
        if cell["threads"] == 2
    }
    found = rows(SPEED, "file")
    assert [row[0] for row in found] == list(FILES)
    for file, tokens, left, *speedups in found:
        measured = [
            cells[FILES[file], runtime, batch]
            for runtime in ("onnx", "openvino")
            for batch in (1, 8)
        ]
        assert [f"{cell['speedup']:.2f}x" for cell in measured] == speedups, file
        assert {(str(cell["tokens"]), str(cell["tokens_left"])) for cell in measured} == {
            (tokens, left)
        }
        assert {f"{cell['limit']:.1f}" for cell in measured} == {"2.0"}
    one, eight = ([float(row[column].rstrip("x")) for row in found] for column in (3, 4))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"[{min(one):.2f} to {max(one):.2f} times as fast](docs/speed.md#exported-files)" in readme
    )
    assert f"and {min(eight):.2f} to {max(eight):.2f} times at batch 8" in readme


def real(name: str, kind: str) -> dict[float, dict[str, Any]]:
    """The cells of ToMe with the default rule, by speed-up."""
    return {
        cell["speedup"]: cell
        for cell in cells_of(name)
        if (cell["kind"], cell["schedule"], cell["matching"]) == (kind, "ratio", "tome")
    }


def test_the_real_model() -> None:
    speed, photos = real("real-speed.json", "speed"), real("real-photos.json", "images")
    probe = real("real-cifar.json", "probe")
    readme, page = rows(ROOT / "README.md", "`for_speedup`"), rows(SPEED, "limit")
    assert [float(row[0]) for row in readme] == sorted(speed) == [1.5, 2.0, 3.0]
    for row, longer in zip(readme, page, strict=True):
        cell = speed[float(row[0])]
        assert cell["batch"] == 8
        assert row[1] == longer[1] == str(cell["tokens"][-1])
        assert row[2] == longer[2] == f"{cell['measured']:.2f}x"
        losses = photos[cell["speedup"]]
        assert len(losses["class"]) == 63
        means = [f"{statistics.fmean(losses[read]):.3f}" for read in ("class", "patch")]
        same = probe[cell["speedup"]]["agreement"]
        assert len(same) == 400
        assert row[3:] == longer[4:] == [*means, f"{100 * statistics.fmean(same):.0f} %"]
        low, high = cell["quartiles"]
        assert longer[0] == f"{cell['limit']:.2f}x"
        assert longer[3] == f"{low:.2f} to {high:.2f}"
