"""Models by name: each library's real ones with random weights, their own transforms, the messages."""

from __future__ import annotations

import logging
import os
import urllib.error
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch
from PIL import Image

from tomecore import loading
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError
from tomecore.loading import _failures, _torch, has_random_weights, load
from tomecore.loading.images import Preprocess, channels_of, read_image


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Not square, to distinguish a transform that squeezes from one that crops."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(260, 390, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 200))


def differ(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize(
    ("name", "framework", "shape"),
    [
        ("timm:vit_tiny_patch16_224", "torch", (3, 224, 224)),
        ("torchvision:vit_b_16", "torch", (3, 224, 224)),
        ("open_clip:ViT-B-32", "torch", (3, 224, 224)),
        ("paddleclas:ViT_small_patch16_224", "paddle", (3, 224, 224)),
        ("ppim:deit_ti", "paddle", (3, 224, 224)),
        ("paddle:tiny", "paddle", (3, 224, 224)),
        ("digits:torch", "torch", (1, 56, 56)),
        ("digits:paddle", "paddle", (1, 56, 56)),
    ],
)
def test_every_source(
    name: str, framework: str, shape: tuple[int, int, int], picture: Image.Image
) -> None:
    loaded = load(name)
    assert (loaded.name, loaded.framework, loaded.input_shape) == (name, framework, shape)
    assert not loaded.model.training
    image = loaded.image(picture)
    assert (image.shape, image.dtype) == (shape, np.float32)
    assert has_random_weights(name) == (not name.startswith("digits"))


def test_timm_at_another_resolution(picture: Image.Image) -> None:
    loaded = load("timm:vit_tiny_patch16_224", resolution=96)
    image = torch.from_numpy(loaded.image(picture))[None]
    with torch.no_grad():
        assert loaded.model(image).shape == (1, 1000)
    assert loaded.image(picture).shape == (3, 96, 96)


def test_ours_is_the_transform_of_timm(picture: Image.Image) -> None:
    loaded = load("timm:vit_tiny_patch16_224")
    assert (
        differ(loaded.preprocess(picture), loaded.image(picture)) < 0.02
    )  # torchvision rounds sizes down


def test_a_folder_of_transformers(tmp_path: Path, picture: Image.Image) -> None:
    """With its processor, which squeezes this image, whereas ours would crop it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=64,
    )
    model = ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    name = f"transformers:{tmp_path}"
    loaded = load(name)
    assert not has_random_weights(name)
    expected = processor(images=picture, return_tensors="np")["pixel_values"][0]
    assert differ(loaded.image(picture), expected) < 0.05
    assert differ(loaded.image(picture), loaded.preprocess(picture)) > 0.1
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[key], value, rtol=0, atol=0)


def test_weights_from_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "timm:vit_tiny_patch16_224"
    state = load(name).model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"model": state}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        found = load(name, weights=tmp_path / file).model.state_dict()
        assert all(torch.equal(found[key], state[key]) for key in state)
        assert not has_random_weights(name, weights=tmp_path / file)
    with pytest.raises(ArgumentValueError, match="do not fit the model"):
        load("timm:vit_small_patch16_224", weights=tmp_path / "w.pth")
    (tmp_path / "none.safetensors").write_text("no weights")
    (tmp_path / "none.bin").write_text("no weights")
    for file in ("none.safetensors", "none.bin"):
        with pytest.raises(
            ArgumentValueError, match=rf"{file} cannot be read as weights \(.*; give"
        ):
            load(name, weights=tmp_path / file)
    with pytest.raises(ArgumentValueError, match="there is no file of weights"):
        load(name, weights=tmp_path / "none.pth")


def test_a_function_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from tomecore.loading.images import Preprocess\n"
        "def pair():\n"
        "    return torch.nn.Linear(2, 2), Preprocess((8, 12), (0.5,), (0.5,))\n"
        "def text():\n"
        "    return 'a model'\n"
    )
    loaded = load(f"{tmp_path / 'mine.py'}:pair")
    assert loaded.input_shape == (1, 8, 12)
    monkeypatch.chdir(tmp_path)
    assert load("mine:pair").input_shape == (1, 8, 12)
    with pytest.raises(ArgumentTypeError, match=r"must be a torch.nn.Module or a paddle.nn.Layer"):
        load("mine:text")


def test_the_channels_of_a_convolution_of_ones_own() -> None:
    class Embedding(torch.nn.Conv2d):
        pass

    norm, grey = torch.nn.LayerNorm(8), Embedding(1, 8, 4)
    assert channels_of([norm, grey, torch.nn.Conv2d(3, 8, 4)]) == 1
    assert channels_of([paddle.nn.Conv2D(2, 8, 4)]) == 2
    assert channels_of([norm]) is None


def test_a_type_of_transformers_with_several_classes() -> None:
    model = load("transformers:deit", shapes_only=True).model
    assert type(model).__name__ == "DeiTForImageClassification"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny", r"'vit_tiny' does not name a model; allowed are timm:NAME"),
        ("vit_tiny", r"Did you mean timm:vit_tiny, if it is a model of timm\?"),
        ("digits", r"Did you mean digits:torch\?"),
        ("timm:vit_tiny_patch16", r"did you mean vit_tiny_patch16_224"),
        ("torchvision:vit", r"torchvision has no model 'vit'; .*vit_b_16"),
        ("transformers:vitt", r"neither a folder nor a model type of transformers.*--pretrained"),
        ("transformers:blip_vision_model", r"blip_vision_model cannot be built: ValueError: Unrec"),
        ("timm:vit_bse_patch16_224", r"did you mean vit_base_patch16_224"),
        ("open_clip:ViT-B16", r"open_clip has no model 'ViT-B16'; did you mean ViT-B-16"),
        ("ppim:vitt", r"ppim.models has no model 'vitt'; did you mean vit"),
        ("ppim:resnet", r"ppim.models has no model 'resnet'; it has .*deit"),
        ("paddle:huge", r"paddle:huge is not one of paddle:tiny"),
        ("digits:jax", r"digits:jax is not one of digits:torch"),
        ("no_such_module:f", r"there is no module 'no_such_module'"),
        ("nothing.py:f", r"there is no file nothing.py"),
        ("json:nothing", r"json has no function 'nothing'"),
        (
            "digit:torch",
            r"there is no module 'digit', and no library .*; did you mean digits:torch\?",
        ),
        ("tim:vit_tiny_patch16_224", r"did you mean timm:vit_tiny_patch16_224"),
        ("timm:deit_bse_patch16_224", r"did you mean deit_base_patch16_224"),
        (
            "timm:vit_base_patch16_224.augreg_in2k",
            r"did you mean .*vit_base_patch16_224\.augreg_in1k",
        ),
        ("torchvision:vit_b_61", r"did you mean vit_b_16"),
        ("transformers:dinov", r"did you mean dinov2"),
        ("paddleclas:ViT_small_patch16_244", r"did you mean ViT_small_patch16_224"),
    ],
)
def test_messages(name: str, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        load(name)


def test_what_excludes_each_other() -> None:
    with pytest.raises(ArgumentValueError, match="exclude each other"):
        load("digits:torch", pretrained=True, weights="file.pth")
    with pytest.raises(ArgumentValueError, match="at least 1 pixel; got 0"):
        load("digits:torch", resolution=0)
    with pytest.raises(ArgumentValueError, match="takes images of 56 pixels; got 224"):
        load("digits:torch", resolution=224)
    with pytest.raises(ArgumentValueError, match="several weights for ViT-B-32; name one of"):
        load("open_clip:ViT-B-32", pretrained=True)
    with pytest.raises(ArgumentValueError, match="no model 'openia'; did you mean openai"):
        load("open_clip:ViT-B-32/openia", pretrained=True)


@pytest.mark.parametrize("name", ["timm:test_vit", "transformers:google/vit-base-patch16-224"])
def test_the_hub_is_out_of_reach(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, at once: the client of the hub is switched off for this load, and back on afterwards."""
    import huggingface_hub

    monkeypatch.setattr(_failures, "_reachable", lambda url: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TomeError, match=f"weights of {name} cannot be downloaded") as caught:
        load(name, pretrained=True)
    assert "\n" not in str(caught.value)
    assert "https://huggingface.co does not answer within 4 s" in str(caught.value)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert "HF_HUB_OFFLINE" not in os.environ


def nested(inner: Exception, outer: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


HTTP = urllib.error.HTTPError("https://a.b/c", 404, "Not Found", None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (urllib.error.URLError("no route to host"), r"cannot be downloaded.*no route to host"),
        (nested(ConnectionError("refused"), OSError("We could not")), r"downloaded.*refused"),
        (nested(TimeoutError("too slow"), RuntimeError("No weights")), r"downloaded.*too slow"),
        (RuntimeError("Downloading from u failed. Retry limit reached"), "cannot be downloaded"),
        (
            nested(HTTP, RuntimeError("No weights")),
            r"cannot be loaded .*: RuntimeError: No weights",
        ),
        (ValueError("No tag\nand more"), r"with pretrained weights: ValueError: No tag$"),
    ],
)
def test_what_a_library_raises_is_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise error

    monkeypatch.setitem(loading._LOADERS, "paddleclas", refuse)
    with pytest.raises(TomeError, match=message):
        load("paddleclas:ViT", pretrained=True)
    with pytest.raises(type(error)):  # a fault of the library, without weights to download
        load("paddleclas:ViT")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vit", r"refuses an image of 3 x 33 x 33"),
        ("timm:resnet10t", r"cannot be built for images of 33 pixels \(--resolution\)"),
    ],
)
def test_a_resolution_that_does_not_fit(name: str, message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        load(name, resolution=33)


def test_the_resolution_of_a_clip_is_that_of_its_tower(tmp_path: Path) -> None:
    loaded = load("transformers:clip_vision_model", resolution=64)
    assert loaded.input_shape == (3, 64, 64)


def test_libraries_are_quiet_while_a_model_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    """Steps, and what goes through the root logger; not the warnings of a library's own logger."""
    with caplog.at_level("DEBUG"):
        with _failures.quiet():
            for log in (logging.getLogger(), logging.getLogger("library")):
                log.info("a step of %s", log.name)
                log.warning("a warning of %s", log.name)
        logging.getLogger().info("afterwards")
    assert caplog.messages == ["a warning of library", "afterwards"]


def test_large_parameters_are_not_filled() -> None:
    large, few = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((300, 300), (3, 3)))
    with _torch.uninitialised(), torch.no_grad():
        for one in (large, few):
            torch.nn.init.trunc_normal_(one.data)
            torch.nn.init.kaiming_uniform_(one)
            one.add_(1)
    assert not large.any()
    assert few.all()
    torch.nn.init.ones_(large)
    assert large.all()


@pytest.mark.parametrize("bounds", [{}, {"mean": 1, "a": 0.5, "b": 1.5}, {"a": -0.02, "b": 0.02}])
@pytest.mark.parametrize("data", [False, True])
def test_numbers_within_bounds_are_found(bounds: dict[str, float], data: bool) -> None:
    """Torch draws again what is out of bounds, which never ended where drawing was left out altogether."""
    parameter = torch.nn.Parameter(torch.full((300, 300), 1e9))  # memory that has been used
    with _torch.uninitialised():
        torch.nn.init.trunc_normal_(parameter.data if data else parameter, std=0.5, **bounds)
    assert parameter.abs().max() <= 2


def test_pixels_and_back(picture: Image.Image) -> None:
    preprocess = Preprocess((64, 96))
    there = preprocess(picture)
    back = preprocess.pixels(there)
    assert differ(back, np.asarray(preprocess.cut(picture))) == 0
    grey = Preprocess((64, 64), (0.5,), (0.5,))
    assert grey(picture).shape == (1, 64, 64)
    assert grey.pixels(grey(picture)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5)}, "one number for each channel, 1 or 3 of them"),
        ({"crop": 0}, "`crop` must be above 0 and at most 1; got 0"),
        ({"interpolation": "cubic"}, "must be one of nearest, .*bicubic.*; got 'cubic'"),
    ],
)
def test_a_wrong_preprocess(given: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentValueError, match=message):
        Preprocess(**given)  # type: ignore[arg-type]


def test_unreadable_pictures(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    for path, message in (
        (tmp_path, "is a folder; give the path of an image"),
        (tmp_path / "none.png", "there is no file"),
        (tmp_path / "broken.png", "cannot be read as an image"),
        (tmp_path / "deep.png", "more than 8 bits"),
    ):
        with pytest.raises(ArgumentValueError, match=message):
            read_image(path)
