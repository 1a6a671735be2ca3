"""``tomecore visualize``: the image, the page in a real browser without network, and the errors."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import times_in
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from tomecore import cli
from tomecore.frameworks import predict, to_numpy
from tomecore.loading import load
from tomecore.loading.images import read_image
from tomecore.models import digits
from tomecore.visualization import (
    STRIPS,
    Grid,
    MergedImages,
    Strip,
    follow_images,
    html_page,
    layers_to_draw,
    make_visualization,
    pixels_to_draw,
)

BROWSER = Path(sys.prefix) / "browser"
HOSTILE = "<img src=x onerror=alert(1)>.png"

MODELS = """
import timm, transformers
from tomecore.loading.images import Preprocess

def wide():
    model = timm.models.VisionTransformer(
        img_size=(32, 64), patch_size=8, embed_dim=48, depth=5, num_heads=3, reg_tokens=4,
        num_classes=2)
    return model, Preprocess((32, 64))

def outputs():
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=64, image_size=32, patch_size=8)
    return transformers.ViTModel(config), Preprocess((32, 32))

def refuses():
    return outputs()[0], Preprocess((16, 16))
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["visualize", *map(str, arguments)], env={"COLUMNS": "200"})


def errors_in(stderr: str) -> list[str]:
    """The lines of errors; a slow machine prints lines of progress, too."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, digits, and functions that make models."""
    folder = tmp_path_factory.mktemp("pictures")
    photos = load_sample_images()
    (folder / "photos").mkdir()
    for name, photo in zip(("china.jpg", "flower.jpg"), photos.images, strict=True):
        Image.fromarray(photo).save(folder / "photos" / name)
    Image.fromarray(photos.images[1]).convert("L").save(folder / HOSTILE)
    (folder / "digits").mkdir()
    images, _ = digits.load("test")
    for number in range(3):
        pixels = (images[number, 0] * digits.STD + digits.MEAN).clip(0, 1) * 255
        Image.fromarray(pixels.round().astype(np.uint8)).save(folder / "digits" / f"{number}.png")
    (folder / "models.py").write_text(MODELS)
    return folder


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_the_picture_shows_what_the_model_merged(
    framework: str, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "digits.png"
    result = run(
        *(folder / "digits", "--model", f"digits:{framework}", "--layers", "11,1"),
        *("--scale", 2, "--output", output),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "r=16: of 197 tokens, 165, 11 are left after layers 1, 11",
        f"Drawing: {output}",
    ]
    sheet = np.asarray(picture_in(output))
    loaded = load(f"digits:{framework}")
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    model = adapter.apply_patch(loaded.model, r=16, trace_source=True)
    images = [read_image(path) for path in sorted((folder / "digits").glob("*.png"))]
    inputs = [loaded.image(image) for image in images]
    predict(model, np.stack(inputs))
    for image, array, source in zip(images, inputs, to_numpy(model.tome.source), strict=True):
        shown = pixels_to_draw(array, loaded.preprocess, 2, image)
        np.testing.assert_array_equal(shown.shape, (112, 112, 3))
        assert times_in(sheet, shown) == 1
        assert times_in(sheet, make_visualization(shown, source, 8)) == 1


def test_random_weights_are_called_random(folder: Path, tmp_path: Path) -> None:
    result = run(
        *("--model", "timm:test_vit", "--r", "8", "(8, -1)", "8", folder / "photos"),
        *("--output", tmp_path / "photos.jpg", "--limit", 1),
    )
    assert result.exit_code == 0, result.output
    assert "Drawing the first 1 of 2 images; --limit 2 draws all." in result.stdout
    assert "The weights of timm:test_vit are random" in result.stdout
    assert result.stdout.count("tokens, ") == 2
    assert "r=(8, -1): of 101 tokens" in result.stdout
    width, height = picture_in(tmp_path / "photos.jpg").size
    depth = len(layers_to_draw(6))
    assert 1 < width / ((1 + depth) * 2 * 160) < 1.2
    assert 1 < height / (2 * 2 * 160) < 1.6


def test_wide_images_registers_and_outputs_that_are_no_arrays(folder: Path, tmp_path: Path) -> None:
    models, photo = folder / "models.py", folder / "photos" / "china.jpg"
    wide = run(photo, "--model", f"{models}:wide", "--r", "4", "--output", tmp_path / "wide.png")
    assert wide.exit_code == 0, wide.output
    assert "of 37 tokens, 33, 29, 21, 17 are left after layers 0, 1, 3, 4" in wide.stdout
    assert "random" not in wide.stdout
    width, height = picture_in(tmp_path / "wide.png").size
    assert 5 * 640 < width < 5 * 700
    assert 320 < height < 600
    other = run(photo, "--model", f"{models}:outputs", "--output", tmp_path / "other.svg")
    assert other.exit_code == 0, other.output
    assert "of 17 tokens, 9, 5 are left after layers 0, 1" in other.stdout
    assert (tmp_path / "other.svg").read_text().count("<image") == 3 + 2


def test_the_style_of_the_drawing(folder: Path, tmp_path: Path) -> None:
    photo, output = folder / "photos" / "china.jpg", tmp_path / "out.png"
    options = ("--model", "timm:test_vit", "--scale", 1, "--output", output)
    sheets = []
    for style in ((), ("--title", ""), ("--opacity", 0.5), ("--background", "#0d1117")):
        result = run(photo, *options, *style)
        assert result.exit_code == 0, result.output
        sheets.append(np.asarray(picture_in(output)))
    assert sheets[1].shape[0] < sheets[0].shape[0]  # there is no line for a title
    assert sheets[2].shape == sheets[0].shape
    assert (sheets[2] != sheets[0]).any()
    assert sheets[3][0, 0].tolist() == [13, 17, 23]


def test_the_drawing_and_the_command_have_the_same_formats() -> None:
    assert importlib.import_module("tomecore.cli.visualize")._DRAWINGS == STRIPS


def test_what_cannot_be_read_is_reported_and_the_rest_drawn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "text.jpg", tmp_path / "nowhere.png", tmp_path / "empty"]
    output = tmp_path / "out.png"
    result = run(*bad, folder / "digits", "--model", "digits:torch", "--output", output)
    assert result.exit_code == 1
    lines = errors_in(result.stderr)
    assert len(lines) == 3
    assert f"error: there is no file {bad[1]}" in lines
    assert any(line.startswith(f"error: {bad[0]} cannot be read as an image") for line in lines)
    assert any(
        line.startswith(f"error: there is no image in the folder {bad[2]}") for line in lines
    )
    assert "r=16: of 197 tokens" in result.stdout
    assert picture_in(output).size[1] > 3 * 336
    output.unlink()
    nothing = run(*bad, "--model", "digits:torch", "--output", output)
    assert nothing.exit_code == 1
    assert len(errors_in(nothing.stderr)) == 3
    assert not output.exists()
    unread = run(*bad[1:], "--model", "no:such", "--output", output)
    assert unread.exit_code == 1
    assert len(errors_in(unread.stderr)) == 2  # the model is not even loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3,x"], "'3,x' does not name layers; give numbers from 0"),
        (["--layers=-1,3"], "'-1,3' does not name layers; give numbers from 0"),
        (["--layers", "3,12"], "there is no layer 12; digits:torch has layers 0 to 11"),
        (["--opacity", "1.5"], "Invalid value for '--opacity'"),
        (["--r", "many"], "'many' is not an r"),
        (["--output", "merged.txt"], "merged.txt must end in .png"),
        (["--html", "page.png"], "page.png must end in .html or .htm"),
    ],
)
def test_wrong_options(folder: Path, arguments: list[str], message: str) -> None:
    result = run(folder / "digits", "--model", "digits:torch", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_model_that_cannot_be_patched_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["visualize", str(folder / "digits"), "--model", "timm:test_resnet"])
    assert stop.value.code == 1
    (line,) = errors_in(capsys.readouterr().err)
    assert line.startswith("error: ")


def test_a_model_that_refuses_the_size_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main(["visualize", str(folder / "digits"), "--model", "models.py:refuses", "--r", "2"])
    assert stop.value.code == 1
    (line,) = errors_in(capsys.readouterr().err)
    assert line.startswith("error: the model refuses an image of 3 x 16 x 16")


def test_a_file_that_cannot_be_written_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(strip: Strip, path: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Strip, "save", fail)
    output = tmp_path / "out.png"
    with pytest.raises(SystemExit) as stop:
        cli.main(["visualize", str(folder / "digits"), "-m", "digits:torch", "-o", str(output)])
    assert stop.value.code == 1
    (line,) = errors_in(capsys.readouterr().err)
    assert line == f"error: {output} cannot be written: no space left"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not (BROWSER / "chromium").is_file():
        pytest.fail("there is no browser; install it with: python tools/install_browser.py")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{BROWSER / 'libraries' / 'lib'}:{BROWSER / 'libraries'}",
        "FONTCONFIG_FILE": str(BROWSER / "fonts.conf"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER / "chromium", args=["--no-sandbox"], env=environment
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """``opened(path)``: the page of a file, without network; whatever goes wrong in it is an error."""
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    wrong: list[str] = []

    def opened(path: Path) -> Page:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield opened
    context.close()
    assert wrong == []


def painted(page: Page, panel: int) -> np.ndarray:
    """(H, W, 3) uint8: what is on a panel."""
    url = page.evaluate("id => document.getElementById(id).toDataURL()", f"panel-{panel}")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    )


def choose(page: Page, **values: object) -> None:
    """Set fields of the page by their ids, and wait until it is drawn."""
    for name, value in values.items():
        field = page.locator(f"#{name.replace('_', '-')}")
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(str(value))
        else:
            field.fill(str(value))
    page.evaluate("show()")


def says(page: Page, place: str, text: str) -> None:
    """Wait until a part of the page has this text."""
    expect(page.locator(f"#{place}")).to_have_text(text, timeout=10_000)


@pytest.fixture(scope="module")
def traced(folder: Path) -> MergedImages:
    """Two photographs, one by a hostile name, through a model of wide images at two r."""
    loaded = load(f"{folder / 'models.py'}:wide")
    model = importlib.import_module("tomecore.adapters.torch").apply_patch(loaded.model)
    paths = [folder / "photos" / "china.jpg", folder / HOSTILE]
    images = [read_image(path) for path in paths]
    inputs = np.stack([loaded.image(image) for image in images])
    pixels = [
        pixels_to_draw(array, loaded.preprocess, 4, image)
        for array, image in zip(inputs, images, strict=True)
    ]
    return follow_images(model, inputs, pixels, [path.name for path in paths], [2, (4, -1)])


def lit(pixels: np.ndarray, group: np.ndarray, patch: int, side: int) -> np.ndarray:
    """(patches,) bool: the patches that are not darkened in ``pixels``, relative to ``group``'s drawing."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    middle = side // 2
    shown = pixels[middle::side, middle::side].reshape(rows * columns, 3).astype(int)
    before = group[middle::side, middle::side].reshape(rows * columns, 3).astype(int)
    return (np.abs(shown - before).sum(-1) == 0) & (before.sum(-1) > 0)


def test_the_page_paints_what_python_paints(
    opened: Any, traced: MergedImages, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(html_page(traced, "Wide", opacity=0.55))
    page = opened(tmp_path / "page.html")
    says(page, "opacity-number", "55 %")
    for image in (0, 1):
        for opacity in (55, 100):
            for layer in (-1, 0, 2, 4):
                choose(page, image=image, opacity=opacity, layer=layer, shows_0=1, shows_1=0)
                when = "Before layer 0" if layer < 0 else f"After layer {layer}"
                says(page, "layer-number", "before 0" if layer < 0 else str(layer))
                expect(page.locator("#status")).to_contain_text(f"{when} (layers 0 to 4).")
                for panel, number in ((0, 1), (1, 0)):
                    left = f"{traced.tokens(number, layer)} of 37 tokens"
                    says(page, f"caption-{panel}", f"r = {traced.r[number]}: {left}")
                    expected = traced.pixels[image]
                    if layer >= 0:
                        expected = traced.paint(image, number, layer, opacity / 100)
                    np.testing.assert_array_equal(painted(page, panel), expected)
    choose(page, shows_0=-1)
    says(page, "caption-0", f"{traced.names[1]}: 37 tokens")
    np.testing.assert_array_equal(painted(page, 0), traced.pixels[1])


def test_a_patch_lights_up_its_group(opened: Any, traced: MergedImages, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_page(traced, "Wide"))
    page = opened(tmp_path / "page.html")
    choose(page, layer=4, shows_0=0, shows_1=1)
    says(page, "caption-1", f"r = (4, -1): {traced.tokens(1, 4)} of 37 tokens")
    groups = [traced.sources[number][4][0, traced.prefix :] for number in (0, 1)]
    plain = [painted(page, panel) for panel in (0, 1)]
    sizes = [np.bincount(group)[group] for group in groups]
    patch = int(np.argmax(sizes[1]))
    row, column = divmod(patch, 8)
    box = page.locator("#panel-1").bounding_box()
    assert box
    at = ((column + 0.5) * box["width"] / 8, (row + 0.5) * box["height"] / 4)

    def is_lit(chosen: int) -> None:
        for panel, group in enumerate(groups):
            found = lit(painted(page, panel), plain[panel], chosen, 32)
            np.testing.assert_array_equal(found, group == group[chosen])

    page.mouse.move(box["x"] + at[0], box["y"] + at[1])
    text = "; ".join(
        f"r = {traced.r[n]}: its group has {sizes[n][patch]} of 32 patches" for n in (0, 1)
    )
    says(page, "group", f"Patch in row {row}, column {column} (from 0). {text}")
    is_lit(patch)
    page.mouse.move(5, 5)
    expect(page.locator("#group")).to_contain_text("Point at a patch")
    np.testing.assert_array_equal(painted(page, 1), plain[1])
    page.locator("#panel-1").click(position={"x": at[0], "y": at[1]})
    page.mouse.move(5, 5)
    expect(page.locator("#group")).to_contain_text("(kept)")
    is_lit(patch)
    page.keyboard.press("Escape")
    np.testing.assert_array_equal(painted(page, 0), plain[0])
    page.locator("#panel-0").focus()
    page.keyboard.press("ArrowLeft")  # begins in the middle
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#group")).to_contain_text("Patch in row 1, column 3 (from 0).")
    is_lit(8 + 3)


def test_the_page_plays_and_saves(opened: Any, traced: MergedImages, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_page(traced, "Wide"))
    page = opened(tmp_path / "page.html")
    says(page, "layer-number", "4")
    page.clock.install()
    page.click("#play")
    says(page, "play", "Pause")
    for layer in ("before 0", "0", "1"):
        says(page, "layer-number", layer)
        page.clock.run_for(700)
    page.click("#play")
    says(page, "play", "Play")
    page.clock.run_for(7000)
    says(page, "layer-number", "2")
    page.click("#play")
    page.clock.run_for(7000)
    says(page, "play", "Play")  # it stops at the last layer
    says(page, "layer-number", "4")
    choose(page, layer=3)
    says(page, "layer-number", "3")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "china-after-layer-3.png"
    download.value.save_as(tmp_path / "saved.png")
    saved = np.asarray(picture_in(tmp_path / "saved.png").convert("RGB"))
    for panel in (0, 1):
        assert times_in(saved, painted(page, panel)) == 1
    assert (saved[:60] < 100).any()  # the title and the captions


def test_the_page_by_keyboard(opened: Any, traced: MergedImages, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(html_page(traced, "Wide", "Load <b> with --weights"))
    page = opened(tmp_path / "page.html")
    says(page, "caption-1", f"r = 2: {traced.tokens(0, 4)} of 37 tokens")
    says(page, "caption-0", "china.jpg: 37 tokens")
    assert page.locator("p").first.inner_text() == "Load <b> with --weights"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#caption-0")).to_contain_text("onerror")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    says(page, "layer-number", "3")
    page.keyboard.press("Home")
    says(page, "layer-number", "before 0")
    assert page.locator("#layer").get_attribute("aria-valuetext") == "Before layer 0"
    for label in ("Image", "Layer", "Opacity", "Left", "Right"):
        assert page.get_by_label(label, exact=True).count() == 1
    names = page.locator("canvas").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert names[0].endswith(".png: 37 tokens")
    assert names[1].endswith("r = 2: 37 of 37 tokens")


@pytest.mark.parametrize(("width", "height"), [(1100, 760), (390, 844), (844, 390)])
def test_the_page_fits(opened: Any, tmp_path: Path, width: int, height: int) -> None:
    """Nothing is wider than the window, and on a desktop the panels need no scrolling."""
    square = MergedImages(
        names=("a long name of a photograph " * 4,),
        pixels=(np.zeros((320, 320, 3), dtype=np.uint8),),
        grid=Grid(4, 4, (80, 80)),
        prefix=1,
        r=([1] * 40, 2),
        sources=2 * ((np.arange(17)[None],) * 40,),
    )
    (tmp_path / "page.html").write_text(html_page(square, "Square", "A note " * 30))
    page = opened(tmp_path / "page.html")
    page.set_viewport_size({"width": width, "height": height})
    expect(page.locator("#status")).not_to_be_empty()
    wide, bottom = page.evaluate(
        "[document.documentElement.scrollWidth, "
        "document.getElementById('caption-1').getBoundingClientRect().bottom]"
    )
    assert wide <= width
    if width == 1100:
        assert bottom <= height


def test_names_are_text_whatever_they_say(
    opened: Any, traced: MergedImages, tmp_path: Path
) -> None:
    names = ("</script><script>alert(2)</script>", f"{HOSTILE}\n{{{{title}}}} & \u2028 \udc80")
    hostile = dataclasses.replace(traced, names=names)
    title = "</title><script>alert(3)</script>{{data}}"
    (tmp_path / "page.html").write_text(html_page(hostile, title, HOSTILE))
    page = opened(tmp_path / "page.html")
    expect(page.locator("#caption-0")).not_to_be_empty()
    assert page.title() == page.inner_text("h1") == title
    assert page.text_content("#caption-0") == f"{names[0]}: 37 tokens"
    assert page.locator("#image option").all_text_contents() == [
        names[0],
        f"{HOSTILE}\\n{{{{title}}}} & \\u2028 \\udc80",
    ]
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_nothing_but_the_pages_own_script_would_run(
    browser: Browser, traced: MergedImages, tmp_path: Path
) -> None:
    """Were a name to get through as markup, the page's policy would stop it; and it does so here."""
    text = html_page(traced, "Wide").replace(
        "<h1>",
        "<script>document.title = 'broken'</script><img src=x onerror='document.title=1'><h1>",
    )
    (tmp_path / "page.html").write_text(text)
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    expect(page.locator("#status")).not_to_be_empty()
    assert page.title() == "Wide"
    assert any("Content Security Policy" in message for message in refused)
    page.close()


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_the_page_of_the_command(opened: Any, framework: str, folder: Path, tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    result = run(
        *(folder / "digits", folder / HOSTILE, "--model", f"digits:{framework}"),
        *("--r", "8", "--r", "16", "--html", page_file, "--output", tmp_path / "out.png"),
    )
    assert result.exit_code == 0, result.output
    assert f"Page: {page_file}" in result.stdout
    page = opened(page_file)
    says(page, "caption-1", "r = 8: 101 of 197 tokens")
    assert page.title() == f"Tokens merged by digits:{framework}"
    assert page.locator("#image option").all_text_contents() == ["0.png", "1.png", "2.png", HOSTILE]
    assert page.locator("#shows-0 option").all_text_contents() == ["the image", "r = 8", "r = 16"]
    choose(page, shows_1=1, layer=5)
    says(page, "caption-1", "r = 16: 101 of 197 tokens")
    shown = painted(page, 1)
    assert shown.shape == (336, 336, 3)
    sheet = np.asarray(picture_in(tmp_path / "out.png"))
    assert times_in(sheet, shown) == 1
    (data,) = page.locator("#data").all_text_contents()
    assert len(json.loads(data)["images"][0]["slots"][1]) == 12


def picture_in(path: Path) -> Image.Image:
    """The image in a file, which is closed again."""
    with Image.open(path) as picture:
        picture.load()
    return picture
