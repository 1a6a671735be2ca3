"""``tomecore.visualize``: images in every form, models of every library, and the model is as it was."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from drawings import times_in
from PIL import Image

import tomecore
from tomecore._project import install_hint
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    MissingLibraryError,
    UnsupportedModelError,
)
from tomecore.frameworks import RUNTIMES, named_modules, to_numpy
from tomecore.loading.images import IMAGENET_MEAN, IMAGENET_STD, read_image
from tomecore.visualization import (
    follow_images,
    pixels_to_draw,
    preprocess_of,
    sources_by_layer,
)

PHOTO = files("sklearn.datasets") / "images" / "china.jpg"
HALF = (0.5, 0.5, 0.5)
CLIP = (0.48145466, 0.4578275, 0.40821073)


def small(framework: str = "torch", **arguments: Any) -> Any:
    """A ViT of 3 layers and 17 tokens, in training mode."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    module = importlib.import_module(f"tomecore.models.{framework}")
    model = module.VisionTransformer(**{**sizes, **arguments})
    rng = np.random.default_rng(0)
    weights = {name: to_numpy(value) for name, value in model.state_dict().items()}
    weights = {
        name: rng.normal(0, 0.1, value.shape).astype(np.float32) if value.ndim > 1 else value
        for name, value in weights.items()
    }
    RUNTIMES[framework].load_state(model, weights)
    model.train()
    return model


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_the_drawing_shows_what_merges(framework: str) -> None:
    model = small(framework)
    drawing = np.asarray(
        tomecore.visualize(model, PHOTO, r=3, compare=[(2, 1)], layers=[2, 0], scale=2, opacity=0.7)
    )
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    preprocess = preprocess_of(model)
    image = read_image(PHOTO)
    array = preprocess(image)
    pixels = pixels_to_draw(array, preprocess, 2, image)
    assert pixels.shape == (64, 64, 3)
    assert times_in(drawing, pixels) == 1  # the original, not once for each r
    patched = adapter.apply_patch(model)
    merged = follow_images(patched, array[None], [pixels], [""], [3, (2, 1)])
    for number in (0, 1):
        for layer, shown in ((0, 1), (1, 0), (2, 1)):
            assert times_in(drawing, merged.paint(0, number, layer, opacity=0.7)) == shown
    assert merged.tokens(0, 2) == 8


@pytest.mark.parametrize("framework", ["torch", "paddle"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_not_patched_is_as_it_was(framework: str, fails: bool) -> None:
    model = small(framework)
    before = [(name, type(module), module.training) for name, module in named_modules(model)]
    attributes = set(vars(model))
    options: dict[str, Any] = {"layers": [3]} if fails else {}
    if fails:
        with pytest.raises(
            ArgumentValueError, match=r"`layers` must name layers.*0 to 2; got \[3\]"
        ):
            tomecore.visualize(model, PHOTO, **options)
    else:
        tomecore.visualize(model, PHOTO, **options)
    after = [(name, type(module), module.training) for name, module in named_modules(model)]
    assert after == before
    assert set(vars(model)) == attributes
    assert not hasattr(model, "tome")


def test_a_model_that_fails_is_as_it_was() -> None:
    model = small()
    model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tomecore.visualize(model, PHOTO)
    assert not hasattr(model, "tome")
    assert model.training
    tomecore.apply_patch(model, r=(1, 1), trace_source=True)
    schedule = model.r
    with pytest.raises(ZeroDivisionError):
        tomecore.visualize(model, PHOTO, r=4)
    assert model.r is schedule
    assert model.training
    assert model._tome.observers == ()
    assert model._tome.trace_source


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_a_patched_model_keeps_its_settings(framework: str) -> None:
    model = small(framework)
    tomecore.apply_patch(model, r=2, matching="bidirectional", trace_source=True, restore=False)
    own = tomecore.visualize(model, PHOTO)
    assert own == tomecore.visualize(model, PHOTO, r=2)
    assert own != tomecore.visualize(model, PHOTO, r=4)
    assert model.r == 2
    assert model.tome.matching == "bidirectional"
    assert not model.tome.restore
    assert tuple(model.tome.source.shape) == (1, 17)
    assert model.training


def test_without_an_r_a_model_that_merges_nothing_gets_one() -> None:
    model = small(img_size=56, patch_size=4)
    first = tomecore.visualize(model, PHOTO)
    assert first == tomecore.visualize(model, PHOTO, r=16)
    tomecore.apply_patch(model)
    assert first == tomecore.visualize(model, PHOTO)
    assert model.r == 0
    assert first != tomecore.visualize(model, PHOTO, r=0)


def test_images_in_every_form() -> None:
    model = small()
    image = read_image(PHOTO)
    pixels = np.asarray(image)
    expected = tomecore.visualize(model, image, scale=1)
    array = preprocess_of(model)(image)
    forms = [pixels, array, array[None], torch.from_numpy(array), torch.from_numpy(array)[None]]
    for one in forms:
        assert tomecore.visualize(model, one, scale=1) == expected
    several = tomecore.visualize(model, [str(PHOTO), *forms[:2], np.stack([array, array])], scale=1)
    assert several.height > expected.height + 4 * 60
    grey = np.asarray(image.convert("L"))
    assert tomecore.visualize(model, grey) == tomecore.visualize(model, np.stack([grey] * 3, -1))
    half = torch.from_numpy(array).to(torch.bfloat16)
    assert tomecore.visualize(model.to(torch.bfloat16), half, scale=1).size == expected.size


def test_the_photographs_own_pixels_are_drawn_if_they_show_the_same() -> None:
    preprocess = preprocess_of(small())
    image = read_image(PHOTO)
    array = preprocess(image)
    sharp = pixels_to_draw(array, preprocess, 4, image).astype(int)
    smooth = pixels_to_draw(array, preprocess, 4).astype(int)
    detail = [np.abs(np.diff(one, axis=1)).mean() for one in (sharp, smooth)]
    assert detail[0] > 1.5 * detail[1]
    other = image.crop((0, 0, 300, 400))  # another part of it
    np.testing.assert_array_equal(pixels_to_draw(array, preprocess, 4, other), smooth)
    assert pixels_to_draw(array, preprocess).shape == (320, 320, 3)


def test_a_photograph_taken_sideways_is_drawn_upright(tmp_path: Path) -> None:
    upright = read_image(PHOTO)
    exif = upright.getexif()
    exif[0x0112] = 6  # the orientation: turn it clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    model = small()
    preprocess = preprocess_of(model)
    pixels = pixels_to_draw(preprocess(upright), preprocess, 2, upright)
    with Image.open(tmp_path / "a.png") as opened:
        for given in (opened, tmp_path / "a.png"):
            drawing = np.asarray(tomecore.visualize(model, given, r=3, layers=[0], scale=2))
            assert times_in(drawing, pixels) == 1


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "a.png", transparency=bytes([7]))
    assert read_image(tmp_path / "a.png").getcolors() == [(16, (255, 0, 0))]


def test_grey_models_and_other_statistics() -> None:
    model = small(in_chans=1)
    assert preprocess_of(model).mean == (pytest.approx(sum(IMAGENET_MEAN) / 3),)
    tomecore.visualize(model, PHOTO)
    array = preprocess_of(model, mean=0.3, std=0.4)(read_image(PHOTO))
    shown = [tomecore.visualize(model, one, scale=1, mean=0.3, std=0.4) for one in (array, PHOTO)]
    cell = preprocess_of(model, mean=0.3, std=0.4).pixels(array)
    assert all(times_in(np.asarray(one), cell) == 1 for one in shown)


def transformers_model(kind: str, **fixed: Any) -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    config = transformers.AutoConfig.for_model(
        kind, **sizes, intermediate_size=64, image_size=32, **fixed
    )
    return transformers.AutoModel.from_config(config)


def whole_clip() -> Any:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**vision, "patch_size": 8, "image_size": 32, "intermediate_size": 64}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    return transformers.CLIPModel(config)


def open_clip_model() -> Any:
    from open_clip import model as models

    vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = models.CLIP(16, vision, text)
    models.set_model_preprocess_cfg(model, {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    return model


def timm_model() -> Any:
    return timm.create_model("test_vit", img_size=(32, 64), patch_size=8)


def torchvision_model() -> Any:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    return torchvision.models.VisionTransformer(**sizes, hidden_dim=32, mlp_dim=64)


@pytest.mark.parametrize(
    ("build", "size", "mean", "std"),
    [
        (timm_model, (32, 64), HALF, HALF),
        (torchvision_model, (32, 32), IMAGENET_MEAN, IMAGENET_STD),
        (lambda: transformers_model("vit"), (32, 32), HALF, HALF),
        (lambda: transformers_model("dinov2"), (32, 32), IMAGENET_MEAN, IMAGENET_STD),
        (lambda: transformers_model("siglip_vision_model"), (32, 32), HALF, HALF),
        (lambda: transformers_model("clip_vision_model"), (32, 32), CLIP, None),
        (whole_clip, (32, 32), CLIP, None),
        (open_clip_model, (32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
    ids=["timm", "torchvision", "vit", "dinov2", "siglip", "clip", "whole clip", "open_clip"],
)
def test_each_library_says_how_its_images_are_prepared(
    build: Any, size: Any, mean: Any, std: Any
) -> None:
    model = build()
    found = preprocess_of(model)
    assert found.size == size
    assert tuple(found.mean) == mean
    assert std is None or tuple(found.std) == std
    drawn = tomecore.visualize(model, PHOTO, r=2)
    assert drawn.width > 5 * 320 * size[1] // size[0] * 0.5
    other = preprocess_of(model, size=(16, 24), mean=0.25, std=(0.5, 0.6, 0.7))
    assert other.size == (16, 24)
    assert other.mean == (0.25, 0.25, 0.25)
    assert other.std == (0.5, 0.6, 0.7)


def test_a_checkpoint_on_this_machine_says_it_itself(tmp_path: Path) -> None:
    transformers_model("vit").save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(tmp_path)
    found = preprocess_of(transformers.AutoModel.from_pretrained(tmp_path))
    assert found.mean == (0.1, 0.2, 0.3)
    assert found.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "svg", "pdf", "html"])
def test_files_of_every_kind(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"merged.{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = tomecore.visualize(
            small(), PHOTO, title="A $title$ & <more> \u4e2d", save=path, background="transparent"
        )
    assert drawing.mode == "RGBA"
    if ending == "svg":
        root = ElementTree.parse(path).getroot()
        images = [one for one in root.iter() if one.tag.endswith("}image")]
        assert len(images) == 4 + 3  # the original, three layers, and their bars
        assert root.attrib["width"] == f"{drawing.width * 72 / 128:g}pt"
    elif ending == "pdf":
        assert path.read_bytes().startswith(b"%PDF")
    elif ending == "html":
        text = path.read_text(encoding="utf-8")
        assert "<title>A $title$ &amp; &lt;more&gt; \u4e2d</title>" in text
    else:
        with Image.open(path) as written:
            assert written.size == drawing.size


def test_a_transparent_background_and_colours() -> None:
    model = small()
    corner = [
        tomecore.visualize(model, PHOTO, background=one).getpixel((0, 0))
        for one in ("transparent", "white", "#0d1117")
    ]
    assert corner == [(255, 255, 255, 0), (255, 255, 255), (13, 17, 23)]


def test_the_bar_has_a_piece_for_each_group() -> None:
    """Its length is the share of the group's patches."""
    model = small()
    drawing = np.asarray(tomecore.visualize(model, PHOTO, r=4, layers=[2], scale=10))
    preprocess = preprocess_of(model)
    image = read_image(PHOTO)
    array = preprocess(image)
    pixels = pixels_to_draw(array, preprocess, 10, image)
    with_r = tomecore.apply_patch(model, r=4)
    merged = follow_images(with_r, array[None], [pixels], [""], [4])
    sizes, colours = merged.groups(0, 0, 2)
    source = sources_by_layer(model, array[None])[2][0, 1:]
    assert sorted(sizes) == sorted(np.unique(source, return_counts=True)[1])
    assert (np.diff(sizes) <= 0).all()
    assert any(_ends_with_pieces(row, colours, sizes) for row in drawing)


def _ends_with_pieces(row: np.ndarray, colours: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether the last cell of a row of pixels has these colours, each as long as its size says."""
    gap = (len(row) - 2 * 320) // 3
    bar = row[len(row) - gap - 320 : len(row) - gap]
    ends = np.cumsum(sizes) * 320 // 16
    return all(
        (bar[start : end - 1] == colour).all()
        for start, end, colour in zip([0, *ends[:-1]], ends, colours, strict=True)
    )


def closed() -> Image.Image:
    image = Image.new("RGB", (32, 32))
    image.close()
    return image


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ("missing.jpg", {}, ArgumentValueError, "there is no file missing.jpg"),
        ([], {}, ArgumentValueError, "`images` must name at least one image"),
        (3, {}, ArgumentTypeError, r"must be a path, a Pillow image.*got builtins.int"),
        (
            np.zeros((32, 32, 3)),
            {},
            ArgumentTypeError,
            r"got float64 of shape \(32, 32, 3\). This model takes C = 3 channels",
        ),
        (
            np.zeros((3, 32, 32), np.uint8),
            {},
            ArgumentTypeError,
            r"got uint8 of shape \(3, 32, 32\)",
        ),
        (
            [np.zeros((3, 32, 32)), np.zeros((3, 16, 16))],
            {},
            ArgumentValueError,
            "must all have the same shape",
        ),
        (
            Image.new("I;16", (32, 32)),
            {},
            ArgumentValueError,
            r"an image of `images` has pixels of more than 8 bits \(I;16\)",
        ),
        (PHOTO, {"opacity": 2}, ArgumentValueError, "`opacity` must be from 0 to 1; got 2"),
        (PHOTO, {"opacity": "full"}, ArgumentTypeError, "`opacity` must be a number; got 'full'"),
        (PHOTO, {"scale": 0}, ArgumentValueError, "`scale` must be an integer of at least 1"),
        (
            PHOTO,
            {"scale": 9999},
            ArgumentValueError,
            "`scale` must be at most 256 for images of 32 x 32",
        ),
        (PHOTO, {"layers": []}, ArgumentValueError, r"`layers` must name layers.*got \[\]"),
        (Image.new("RGB", (0, 5)), {}, ArgumentValueError, r"has no pixels; its size is \(0, 5\)"),
        (
            np.zeros((0, 0, 3), np.uint8),
            {},
            ArgumentValueError,
            "an array of `images` has no pixels",
        ),
        (
            PHOTO,
            {"save": 3},
            ArgumentTypeError,
            "`save` must be the name of a file, or a list.*got 3",
        ),
        (PHOTO, {"save": [3]}, ArgumentTypeError, r"`save` must be the name of a file.*got \[3\]"),
        (PHOTO, {"title": 3}, ArgumentTypeError, "`title` must be text; got 3"),
        (PHOTO, {"compare": b"ab"}, ArgumentTypeError, "`compare` must be a list of r.*got b'ab'"),
        (PHOTO, {"layers": 3}, ArgumentTypeError, "`layers` must be a list of layers.*got 3"),
        (PHOTO, {"compare": 3}, ArgumentTypeError, r"`compare` must be a list of r.*got 3"),
        (
            np.zeros((3, 16, 16)),
            {},
            ArgumentValueError,
            r"the model refuses an image of 3 x 16 x 16 \(channels, height, width\)",
        ),
        (
            closed(),
            {},
            ArgumentValueError,
            "an image of `images` cannot be read as an image",
        ),
        (PHOTO, {"layers": [-1]}, ArgumentValueError, "`layers` must be an integer of at least 0"),
        (
            PHOTO,
            {"background": "whit"},
            ArgumentValueError,
            "`background` must be 'transparent' or a",
        ),
        (
            PHOTO,
            {"save": "merged.gif"},
            ArgumentValueError,
            "`save` must name files that end in .png",
        ),
        (
            PHOTO,
            {"save": "none/a.png"},
            ArgumentValueError,
            "`save`: there is no folder none; create",
        ),
        (
            PHOTO,
            {"save": "none/a.html"},
            ArgumentValueError,
            "`save`: there is no folder none; create",
        ),
        (PHOTO, {"mean": (1, 2)}, ArgumentValueError, "`mean` must have 3 numbers"),
        (PHOTO, {"mean": np.nan}, ArgumentValueError, "`mean` must be finite numbers; got nan"),
        (PHOTO, {"std": (1, 0, 1)}, ArgumentValueError, "`std` must be positive numbers; got"),
        (
            PHOTO,
            {"size": (1, 2, 3)},
            ArgumentValueError,
            r"`size` must be \(height, width\) or one",
        ),
    ],
)
def test_mistakes(images: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        tomecore.visualize(small(), images, **options)


def test_models_that_cannot_be_drawn() -> None:
    with pytest.raises(
        ArgumentValueError, match="takes images of 4 channels, and only those of 1 or 3"
    ):
        tomecore.visualize(small(in_chans=4), PHOTO)
    with pytest.raises(UnsupportedModelError):
        tomecore.visualize(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), PHOTO)
    with pytest.raises(
        ArgumentTypeError, match=r"`model` must be a torch.nn.Module or a paddle.nn.Layer"
    ):
        tomecore.visualize("model", PHOTO)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    missing = {"PIL", "matplotlib"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else found(name)
    )
    with pytest.raises(
        MissingLibraryError, match="drawing needs PIL and matplotlib, not inst"
    ) as raised:
        tomecore.visualize(small(), PHOTO)
    assert str(raised.value).endswith(install_hint("cli"))
