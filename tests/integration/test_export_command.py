"""``tomecore export``: each library's file in onnxruntime, next to its model; what is refused or removed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnxruntime.quantization import quantize_dynamic
from typer.testing import CliRunner

import tomecore
from tomecore import cli, exporting
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError, UnsupportedModelError
from tomecore.exporting import _export, _runtimes, _torch
from tomecore.frameworks import predict
from tomecore.loading import load, merging
from tomecore.models import digits
from tomecore.models.torch import VisionTransformer

MODELS = """
from tomecore.loading.images import Preprocess

def torchvision_vit():
    from torchvision.models import VisionTransformer
    from torch import nn
    model = VisionTransformer(32, 4, 2, 2, 64, 128, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zeros otherwise
    return model, Preprocess((32, 32))
"""
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
}
SMALL = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
#: the model -> the width of its output. They differ in what is called, and what it returns: a plain module of
#: timm, nn.MultiheadAttention of torchvision, a CLIP with two towers and fields of transformers, the tower of
#: a CLIP of open_clip, and trained weights.
LIBRARIES = {
    "timm:test_vit": 1000,
    "mine.py:torchvision_vit": 5,
    "transformers:clip-folder": 24,
    "open_clip:tiny-for-export": 24,
    "digits:paddle": 10,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with models in it."""
    import open_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    here = tmp_path_factory.mktemp("models")
    (here / "mine.py").write_text(MODELS)
    (here / "tiny-for-export.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(here / "tiny-for-export.json")
    tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    tower["num_attention_heads"] = 2
    config = CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 4},
        text_config={**tower, "vocab_size": 50},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(here / "clip-folder")
    size = {"shortest_edge": 32}
    CLIPImageProcessor(size=size, crop_size=32).save_pretrained(here / "clip-folder")
    return here


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> Any:
        torch.manual_seed(0)  # of random weights
        return CliRunner().invoke(cli.app, ["export", *arguments], env={"COLUMNS": "200"})

    return run


def loaded(name: str) -> Any:
    torch.manual_seed(0)
    return load(name)


def in_onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["features"]
    (found,) = session.run(None, {"images": images})
    return found


@pytest.mark.graph
@pytest.mark.parametrize("name", LIBRARIES)
def test_the_file_of_each_library(name: str, run: Any, tmp_path: Path) -> None:
    file = tmp_path / "out.onnx"
    result = run("--model", name, "--r", "[6, 5]", "--onnx", str(file), "--rounds", "0")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Checked at batch 1 and 3" in result.stdout
    assert "Done, " in result.stdout
    assert [one.name for one in tmp_path.iterdir()] == ["out.onnx"]
    model = loaded(name)
    images = np.random.default_rng(1).standard_normal((2, *model.input_shape)).astype(np.float32)
    with merging(model.model, [6, 5]):
        if model.whole is None:
            expected = predict(model.model, images)
        else:
            with torch.no_grad():
                features = model.whole.eval().get_image_features(torch.from_numpy(images))
            expected = features.pooler_output.numpy()
    assert expected.shape == (2, LIBRARIES[name])
    for batch in (1, 2):
        found = in_onnxruntime(file, images[:batch])
        np.testing.assert_allclose(found, expected[:batch], atol=1e-4 * np.abs(expected).max())


@pytest.mark.graph
@pytest.mark.parametrize("real", [False, True], ids=["full", "real"])
def test_masks_are_dropped_only_where_they_are_full(real: bool, tmp_path: Path) -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
            mask = mask.tril() if real else mask
            mask = mask.expand(x.shape[0], -1, -1, -1)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    images = torch.randn(2, 2, 5, 4)
    names = ("images", "features")
    features = _torch.Features(Attention(), None)
    _torch.write_onnx(features, images, tmp_path / "a.onnx", names=names, opset=None)
    kinds = [node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node]
    assert ("IsNaN" in kinds, "Where" in kinds) == (real, real)
    found = in_onnxruntime(tmp_path / "a.onnx", images.numpy())
    np.testing.assert_allclose(found, features(images).numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The trained digits model by one command, and its numbers."""
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    given = ["--model", "digits:torch", "--r", "[20, 20]", "--onnx", str(path), "--rounds", "0"]
    numbers = path.with_suffix(".json")
    result = CliRunner().invoke(cli.app, ["export", *given, "--json", str(numbers)])
    assert result.exit_code == 0, (result.output, result.exception)
    return path, json.loads(numbers.read_text())


@pytest.mark.graph
def test_the_report(digits_file: Any) -> None:
    path, found = digits_file
    assert found["size"] == path.stat().st_size
    assert (found["tokens"], found["tokens_left"]) == (197, 157)
    assert found["limit"] > 1.2
    assert found["difference"] < 1e-4
    assert len(found["cosine"]) == found["checked"] == 4
    assert found["speeds"] == []


@pytest.mark.graph
def test_the_graph_is_small(digits_file: Any) -> None:
    """Nodes of a merge lie between the attention half and the MLP half."""
    graph = onnx.load(digits_file[0]).graph
    kinds = [node.op_type for node in graph.node]
    # The slots and the tokens that merge, and in the second layer their sizes.
    assert kinds.count("GatherND") == 6
    # The best partner, the best sources, and the others in order, after the ranks of the sources are lowered.
    assert kinds.count("TopK") == 6
    assert kinds.count("ScatterElements") == 2  # the class token needs no restoring
    assert kinds.count("Shape") <= 1  # of the batch
    assert kinds.count("Squeeze") <= 3 * 12 + 2  # queries, keys, values; sizes for the bias
    start = kinds.index("LpNormalization")
    assert kinds.index("LayerNormalization", start) - start <= 28
    doubles = [one.name for one in graph.initializer if one.data_type == onnx.TensorProto.DOUBLE]
    assert doubles == []


@pytest.mark.graph
@pytest.mark.parametrize("read", ["average", "average without a class token", "grid"])
def test_tokens_are_restored_where_they_are_read(read: str, tmp_path: Path) -> None:
    class Grid(torch.nn.Module):  # fails if tokens are missing
        def __init__(self, tower: Any) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            tokens = self.tower.forward_features(images)[:, 1:]
            return tokens.reshape(-1, 8, 8, tokens.shape[2]).mean(1)

    how: dict[str, Any] = {"global_pool": "token" if read == "grid" else "avg"}
    how["class_token"] = "without" not in read
    model = timm.create_model("test_vit", img_size=32, patch_size=4, **how).eval()
    depth = len(model.blocks)
    model = Grid(model) if read == "grid" else model
    images = np.random.default_rng(1).standard_normal((5, 3, 32, 32)).astype(np.float32)
    path = tmp_path / "a.onnx"
    tomecore.export(model, path, r=[9] * depth, images=images, rounds=0)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    in_order = (
        depth if how["class_token"] else 0
    )  # without prefix tokens, the rest is not put in order
    assert kinds.count("ScatterElements") == depth + in_order
    with merging(model, [9] * depth):
        expected = predict(model, images)
    np.testing.assert_allclose(in_onnxruntime(path, images), expected, atol=1e-5)


@pytest.mark.graph
def test_transposes_and_squeezes_that_compute_something_stay(tmp_path: Path) -> None:
    class Rows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(-1, 5, 4).transpose(1, 2).reshape(-1, 2, 4, 5)  # as of keys
            other = x.reshape(-1, 4, 5).transpose(1, 2).reshape(-1, 2, 4, 5)  # another order
            return rows + other + x[:, :1, :1].squeeze(1)[:, None].squeeze(2).unsqueeze(1).sum(-1)

    x = torch.arange(2 * 2 * 5 * 4.0).reshape(2, 2, 5, 4)
    features, path = _torch.Features(Rows(), None), tmp_path / "a.onnx"
    _torch.write_onnx(features, x, path, names=("images", "features"), opset=None)
    np.testing.assert_array_equal(in_onnxruntime(path, x.numpy()), features(x).numpy())


@pytest.mark.graph
def test_quantised_after_export(digits_file: Any, tmp_path: Path) -> None:
    """onnxruntime's dynamic quantisation takes the file, and digits are still recognised."""
    quantize_dynamic(digits_file[0], tmp_path / "int8.onnx")
    nodes = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert nodes.count("MatMulInteger") >= 4 * 12
    images, labels = digits.load()
    right = in_onnxruntime(tmp_path / "int8.onnx", images[:64]).argmax(1) == labels[:64]
    assert right.mean() > 0.95


class Files:
    """Files that are the model itself, for tests that are not about graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off = 0.0
        self.written: list[Any] = []
        monkeypatch.setattr(_torch, "write_onnx", self.write)
        monkeypatch.setattr(_export, "run_file", self.run_file)

    def write(self, model: Any, images: Any, path: Path, **how: Any) -> None:
        self.written.append((model, how))
        path.write_text("a graph")

    def run_file(self, path: Path, threads: int) -> Any:
        assert path.exists()
        model, _ = self.written[-1]

        def run(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return model(torch.from_numpy(images)).numpy() + self.off

        return run


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(monkeypatch)


def small() -> Any:
    torch.manual_seed(0)
    return VisionTransformer(**SMALL).eval()


def test_from_python(files: Files, tmp_path: Path) -> None:
    model = small()
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype(np.float32)
    names = ("pixels", "logits")
    found = tomecore.export(
        model, tmp_path / "a.onnx", r=4, images=images, names=names, opset=20, batch=2, rounds=2
    )
    assert not hasattr(model, "tome")  # as before
    assert (found.r, found.tokens, found.tokens_left) == (4, 65, 57)
    assert (found.given, found.checked, found.near_ties, found.difference) == (True, 5, 0, 0)
    assert 0.5 < min(found.cosine) < max(found.cosine) < 1
    assert {speed.threads for speed in found.speeds} == {1, _runtimes.cores()}
    assert found.speeds[0].batch == 2
    assert min(found.speeds[0].merged, found.speeds[0].unmerged, found.speeds[0].speedup) > 0
    assert [how for _, how in files.written] == 2 * [{"names": names, "opset": 20}]
    assert [one.name for one in tmp_path.iterdir()] == ["a.onnx"]
    json.dumps(found.as_dict())


def test_a_wrong_file_is_removed_and_an_old_one_stays(
    files: Files, run: Any, tmp_path: Path
) -> None:
    file = tmp_path / "a.onnx"
    file.write_text("old")
    files.off = 0.1
    result = CliRunner().invoke(
        cli.app, ["export", "--model", "digits:torch", "--r", "8", "-o", str(file), "--force"]
    )
    assert result.exit_code == 1
    assert isinstance(result.exception, TomeError)
    assert "does not compute what the model computes: the outputs of 4 of 4 images" in str(
        result.exception
    )
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_no_merging_is_said(files: Files, run: Any, tmp_path: Path) -> None:
    result = run("--model", "digits:torch", "--r", "0", "--onnx", str(tmp_path / "a.onnx"))
    assert result.exit_code == 0, result.output
    assert "r is 0: the file merges nothing" in result.stdout
    assert len(files.written) == 1


def test_an_output_that_cannot_be_compared(files: Files, run: Any, tmp_path: Path) -> None:
    model, path = small(), tmp_path / "a.onnx"
    torch.nn.init.zeros_(model.head.weight)
    how: dict[str, Any] = {"r": 4, "shape": (3, 32, 32), "rounds": 0, "force": True}
    assert tomecore.export(model, path, **how).constant
    assert not tomecore.export(small(), path, **how).constant
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(TomeError, match="`model` itself returns NaN or infinity for 1 of 4 images"):
        tomecore.export(small(), path, **{**how, "images": images})


def test_merged_tokens_have_no_cosine(files: Files, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=32, patch_size=4, num_classes=0, global_pool="")
    tomecore.apply_patch(model.eval(), r=6, restore=False)
    found = tomecore.export(model, tmp_path / "a.onnx", shape=(3, 32, 32), rounds=0)
    assert (found.cosine, found.difference) == ((), 0)


@pytest.mark.graph
def test_an_opset_that_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentValueError, match=r"`opset`: torch.onnx.export wrote version \d+, not"
    ):
        tomecore.export(small(), tmp_path / "a.onnx", r=4, shape=(3, 32, 32), opset=11, rounds=0)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_images_and_a_speedup(files: Files, run: Any, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (56, 56), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "broken.png").write_text("no image")
    result = run(
        *("--model", "digits:torch", "--speedup", "1.5", "--images", str(tmp_path / "images")),
        *("-o", str(tmp_path / "a.onnx"), "--rounds", "1"),
    )
    assert result.exit_code == 1  # one image could not be read
    assert "the arithmetic allows 1.5" in result.stdout
    assert "on the given images" in result.stdout
    assert "broken.png" in result.stderr
    assert (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("name", "widths"),
    [("open_clip:tiny-for-export", (24, 64)), ("transformers:clip-folder", (24, 64))],
)
def test_the_tower_of_a_clip(
    name: str, widths: tuple[int, int], files: Files, run: Any, tmp_path: Path
) -> None:
    for width, more in zip(widths, ((), ("--no-projection",)), strict=True):
        given = (
            "--model",
            name,
            "--r",
            "4",
            "-o",
            str(tmp_path / f"{width}.onnx"),
            "--rounds",
            "0",
        )
        result = run(*given, *more)
        assert result.exit_code == 0, (result.output, result.exception)
    model = loaded(name)
    tower = model.whole or model.model
    with torch.no_grad():
        one = _torch.Features(tower, None)(torch.zeros(2, 3, 32, 32))
        with _torch.without_projection(tower) as bare:
            other = _torch.Features(bare, None)(torch.zeros(2, 3, 32, 32))
        again = _torch.Features(tower, None)(torch.zeros(2, 3, 32, 32))
    assert (one.shape[1], other.shape[1]) == widths
    assert torch.equal(one, again)


def test_a_field_of_the_output(folder: Path) -> None:
    with torch.no_grad():
        model = load(f"transformers:{folder / 'clip-folder'}").model
        found = _torch.Features(model, "last_hidden_state")(torch.zeros(1, 3, 32, 32))
        assert found.shape == (1, 65, 64)
        with pytest.raises(
            ArgumentValueError, match=r"`field` 'logits' .* returns .* pooler_output"
        ):
            _torch.Features(model, "logits")(torch.zeros(1, 3, 32, 32))


IN_OPENVINO = """
import numpy as np, openvino, torch
from tomecore import exporting
from tomecore.frameworks import predict
from tomecore.loading import merging
from tomecore.models.torch import VisionTransformer

torch.manual_seed(0)
model = VisionTransformer(**{settings}).eval()
found = exporting.export(model, "a.xml", r=4, shape=(3, 32, 32), format="openvino", rounds=0)
images = np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)
with merging(model, 4):
    expected = predict(model, images)
compiled = openvino.Core().compile_model("a.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
np.testing.assert_allclose(compiled(images)[0], expected, atol=1e-4)
print(found.size, *found.others)
"""


def test_openvino_is_converted_from_onnx(tmp_path: Path) -> None:
    """OpenVINO's own file runs in OpenVINO at another batch size than those that the export tries.

    It has a process of its own, because OpenVINO forks, which JAX warns of.
    """
    code = IN_OPENVINO.format(settings=SMALL)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sizes = {one.name: one.stat().st_size for one in tmp_path.iterdir()}
    assert sorted(sizes) == ["a.bin", "a.xml"]
    assert done.stdout.splitlines()[-1].split() == [str(sum(sizes.values())), "a.bin"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"path": "none/a.onnx"}, "there is no folder .*none; create it first"),
        ({"path": "a.pt"}, r"`path` must end in .onnx for onnx; got .*a.pt"),
        ({"path": "there.onnx"}, r"there.onnx exists; .* force=True \(--force\)"),
        ({"format": "tflite"}, "`format` must be one of onnx, openvino; got 'tflite'"),
        ({"r": None}, "the model is not patched; pass r"),
        ({"shape": None}, r"`shape` is needed .* shape=\(3, 224, 224\), or `images`"),
        ({"images": np.zeros((2, 3, 8, 8), np.float32)}, r"must be of shape \(3, 32, 32\) each"),
        (
            {"images": np.zeros((3, 32, 32), np.float32)},
            r"must have shape \(n, C, H, W\); got \(3, 32, 32\)",
        ),
        ({"names": ("a", "a")}, "`names` must be two different names"),
        ({"names": "ab"}, "`names` must be two different names, of input and output; got 'ab'"),
        ({"names": None}, "`names` must be two different names, of input and output; got None"),
        ({"shape": 3}, r"`shape` must be the \(C, H, W\) of an image, such as .*; got 3"),
        ({"shape": (3, -16, 16)}, "`shape` must be an integer of at least 1; got -16"),
        ({"batch": 0}, "`batch` must be an integer of at least 1 \\(counting images\\); got 0"),
        ({"opset": 0}, "`opset` must be an integer of at least 1; got 0"),
        ({"path": "there.onnx/a.onnx"}, "there is no folder .*there.onnx; create it first"),
        (
            {"shape": (1, 32, 32)},
            r"refuses an image of 1 x 32 x 32 \(channels, height, width\): Runt",
        ),
        ({"shape": (3, 33, 33)}, r"the model refuses an image of 3 x 33 x 33"),
        ({"projection": False}, "VisionTransformer has no projection; leave `projection` out"),
    ],
)
def test_bad_arguments(how: Any, message: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("")
    path = tmp_path / how.pop("path", "a.onnx")
    with pytest.raises(ArgumentValueError, match=message):
        exporting.export(small(), path, **{"r": 4, "shape": (3, 32, 32), **how})
    assert list(tmp_path.iterdir()) == [tmp_path / "there.onnx"]


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_than_float32_are_refused(dtype: str, files: Files, tmp_path: Path) -> None:
    model = small().to(getattr(torch, dtype))
    with pytest.raises(ArgumentValueError, match=f"in float32 to be exported; got {dtype}. Export"):
        exporting.export(model, tmp_path / "a.onnx", r=4, shape=(3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_other_bad_input(
    files: Files, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArgumentTypeError, match=r"`images` must be a NumPy array .* got list"):
        exporting.export(small(), tmp_path / "a.onnx", r=4, images=[1])
    with pytest.raises(ArgumentTypeError, match="`path` must be the name of a file; got 3"):
        exporting.export(small(), 3, r=4, shape=(3, 32, 32))  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="`field` must be the name of a field; got 3"):
        exporting.export(small(), tmp_path / "a.onnx", r=4, field=3)  # type: ignore[arg-type]
    for name in ("batch", "rounds", "opset"):
        how: dict[str, Any] = {name: "2", "r": 4, "shape": (3, 32, 32)}
        with pytest.raises(ArgumentTypeError, match=f"`{name}` must be an integer .* got '2'"):
            exporting.export(small(), tmp_path / "a.onnx", **how)
    assert "exactly one of --r, --speedup" in run("--model", "digits:torch", "-o", "a.onnx").stderr
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TomeError, match=r'needs onnxruntime, .*pip install ".*\[onnx\]'):
        exporting.export(small(), tmp_path / "a.onnx", r=4, shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            RuntimeError("\nIt reads a value.\nSee page"),
            r"export VisionTransformer: RuntimeError: It reads a value",
        ),
        (UnsupportedModelError("It merges wrongly"), "^It merges wrongly$"),  # ours, as it is
    ],
    ids=["of torch", "of tomecore"],
)
def test_a_model_that_torch_cannot_export(
    cause: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise ValueError("Failed to export the model") from cause

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(TomeError, match=message):
        exporting.export(small(), tmp_path / "a.onnx", r=4, shape=(3, 32, 32))
    assert list(tmp_path.iterdir()) == []


def test_near_ties_are_counted_and_faults_are_not_near_ties() -> None:
    expected = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    found = expected + 1e-5
    found[1] += 0.01 * expected[1]
    difference, flips = _export._compare(expected, found, Path("a"))
    assert flips == 1
    assert difference < 1e-4
    for index in (2, 3):  # two of four differ; then NaN; then another direction; then another shape
        found[index] += 0.01 * expected[index]
        with pytest.raises(TomeError, match=f"outputs of {index} of 4 images differ"):
            _export._compare(expected, found, Path("a"))
    found = expected.copy()
    found[0] = np.nan
    with pytest.raises(TomeError, match="outputs of 1 of 4"):
        _export._compare(expected, found, Path("a"))
    found[0] = -expected[0]
    with pytest.raises(TomeError, match="outputs of 1 of 4"):
        _export._compare(expected, found, Path("a"))
    with pytest.raises(TomeError, match=r"returns shape \(4, 49\)"):
        _export._compare(expected, found[:, 1:], Path("a"))
