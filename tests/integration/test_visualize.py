"""``tomecore visualize``: the picture, the page in a real browser without network, and the errors."""

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
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

from tomecore import cli
from tomecore.frameworks import predict, to_numpy
from tomecore.loading import load
from tomecore.loading.images import read_image
from tomecore.models import digits
from tomecore.visualization import _page as webpage
from tomecore.visualization import _sheet as strips
from tomecore.visualization import make_visualization

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
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["visualize", *map(str, arguments)], env={"COLUMNS": "200"})


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
    output = tmp_path / "new" / "digits.png"
    result = run(
        folder / "digits", "--model", f"digits:{framework}", "--layers", "12,2", "--output", output
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "r=16: of 197 tokens, 165, 11 are left after layers 2, 12",
        f"Picture: {output}",
    ]
    sheet = np.asarray(picture_in(output))
    loaded = load(f"digits:{framework}")
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    model = adapter.apply_patch(loaded.model, r=16, trace_source=True)
    inputs = [loaded.image(read_image(path)) for path in sorted((folder / "digits").glob("*.png"))]
    predict(model, np.stack(inputs))
    side = 4 * 56
    for row, source in enumerate(to_numpy(model.tome.source)):
        top = row * (side + 30) + 22
        original = sheet[top : top + side, 8 : 8 + side]
        shown = loaded.preprocess.pixels(inputs[row]).repeat(4, 0).repeat(4, 1)
        np.testing.assert_array_equal(original, shown)
        left = 8 + 2 * (side + 8)
        np.testing.assert_array_equal(
            sheet[top : top + side, left : left + side], make_visualization(shown, source, 16)
        )


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
    depth = len(strips.layers_to_draw(6))
    assert (width, height) == (8 + (1 + depth) * (2 * 160 + 8), 4 + 2 * (2 * 160 + 30))


def test_wide_images_registers_and_outputs_that_are_no_arrays(folder: Path, tmp_path: Path) -> None:
    models, photo = folder / "models.py", folder / "photos" / "china.jpg"
    wide = run(photo, "--model", f"{models}:wide", "--r", "4", "--output", tmp_path / "wide.png")
    assert wide.exit_code == 0, wide.output
    assert "of 37 tokens, 33, 29, 21, 17 are left after layers 1, 2, 4, 5" in wide.stdout
    assert "random" not in wide.stdout
    assert picture_in(tmp_path / "wide.png").size == (8 + 5 * (7 * 64 + 8), 4 + 7 * 32 + 30)
    other = run(photo, "--model", f"{models}:outputs", "--output", tmp_path / "other.png")
    assert other.exit_code == 0, other.output
    assert "of 17 tokens, 9, 5 are left after layers 1, 2" in other.stdout


def test_what_cannot_be_read_is_reported_and_the_rest_drawn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    bad = [tmp_path / "text.jpg", tmp_path / "nowhere.png", tmp_path / "empty"]
    output = tmp_path / "out.png"
    result = run(*bad, folder / "digits", "--model", "digits:torch", "--output", output)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert f"error: there is no file {bad[1]}" in lines
    assert any(line.startswith(f"error: {bad[0]} cannot be read as an image") for line in lines)
    assert any(
        line.startswith(f"error: there is no image in the folder {bad[2]}") for line in lines
    )
    assert "r=16: of 197 tokens" in result.stdout
    assert picture_in(output).size[1] == 4 + 3 * (224 + 30)
    output.unlink()
    nothing = run(*bad, "--model", "digits:torch", "--output", output)
    assert nothing.exit_code == 1
    assert len(nothing.stderr.splitlines()) == 3
    assert not output.exists()
    unread = run(*bad[1:], "--model", "no:such", "--output", output)
    assert unread.exit_code == 1
    assert len(unread.stderr.splitlines()) == 2  # the model is not even asked for


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "3,x"], "'3,x' does not name layers; give numbers from 1"),
        (["--layers", "0,3"], "'0,3' does not name layers; give numbers from 1"),
        (["--layers", "3,13"], "there is no layer 13; digits:torch has 12"),
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
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_file_that_cannot_be_written_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "models.py" / "out.png"  # a file is no folder
    with pytest.raises(SystemExit) as stop:
        cli.main(["visualize", str(folder / "digits"), "-m", "digits:torch", "-o", str(output)])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {output} cannot be written: ")


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


def painted(page: Page, canvas: str) -> np.ndarray:
    """(H, W, 3) uint8: what is on a canvas."""
    url = page.evaluate("id => document.getElementById(id).toDataURL()", canvas)
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    )


def status(page: Page, text: str) -> None:
    """Wait until the page says so."""
    page.wait_for_function(
        "text => document.getElementById('status').textContent === text", arg=text, timeout=10_000
    )


@pytest.fixture(scope="module")
def traced(folder: Path) -> strips.MergedImages:
    """Two photographs, one by a hostile name, through a model of wide images at two r."""
    loaded = load(f"{folder / 'models.py'}:wide")
    model = importlib.import_module("tomecore.adapters.torch").apply_patch(loaded.model)
    paths = [folder / "photos" / "china.jpg", folder / HOSTILE]
    inputs = np.stack([loaded.image(read_image(path)) for path in paths])
    pixels = [loaded.preprocess.pixels(one) for one in inputs]
    return strips.follow_images(model, inputs, pixels, [path.name for path in paths], [2, (4, -1)])


def test_the_page_paints_what_python_paints(
    opened: Any, traced: strips.MergedImages, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(webpage.html_page(traced, "Wide"))
    page = opened(tmp_path / "page.html")
    for image in (0, 1):
        page.select_option("#image", str(image))
        for number in (0, 1):
            page.select_option("#r", str(number))
            for layer in (0, 1, 3, 5):
                page.locator("#layer").fill(str(layer))
                left = f"{traced.tokens(number, layer)} of 37 tokens left"
                when = f"After layer {layer} of 5" if layer else "Before layer 1 of 5"
                status(page, f"{when}: {left}")
                expected = traced.pixels[image]
                np.testing.assert_array_equal(painted(page, "original"), expected)
                if layer:
                    expected = traced.painted(image, number, layer)
                np.testing.assert_array_equal(painted(page, "merged"), expected)


def test_the_page_by_keyboard(opened: Any, traced: strips.MergedImages, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(webpage.html_page(traced, "Wide", "A note"))
    page = opened(tmp_path / "page.html")
    status(page, f"After layer 5 of 5: {traced.tokens(0, 5)} of 37 tokens left")
    assert page.inner_text("#name") == "china.jpg"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("document.getElementById('name').textContent.includes('onerror')")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    status(page, f"After layer 5 of 5: {traced.tokens(1, 5)} of 37 tokens left")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    status(page, f"After layer 4 of 5: {traced.tokens(1, 4)} of 37 tokens left")
    page.keyboard.press("Home")
    status(page, "Before layer 1 of 5: 37 of 37 tokens left")
    for label in ("Image", "r, tokens merged per layer", "Layer"):
        assert page.get_by_label(label, exact=True).count() == 1
    assert page.get_by_label("Layer", exact=True).get_attribute("aria-valuetext") == (
        "Before layer 1 of 5: 37 of 37 tokens left"
    )


def test_names_are_text_whatever_they_say(
    opened: Any, traced: strips.MergedImages, tmp_path: Path
) -> None:
    names = ("</script><script>alert(2)</script>", f"{HOSTILE}\n{{{{title}}}} & \u2028 \udc80")
    hostile = dataclasses.replace(traced, names=names)
    title = "</title><script>alert(3)</script>{{data}}"
    (tmp_path / "page.html").write_text(webpage.html_page(hostile, title, HOSTILE))
    page = opened(tmp_path / "page.html")
    page.wait_for_function("document.getElementById('name').textContent !== ''")
    assert page.title() == page.inner_text("h1") == title
    assert page.text_content("#name") == names[0]
    assert page.locator("option").all_text_contents()[:2] == [
        names[0],
        f"{HOSTILE}\\n{{{{title}}}} & \\u2028 \\udc80",
    ]
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_nothing_but_the_pages_own_script_would_run(
    browser: Browser, traced: strips.MergedImages, tmp_path: Path
) -> None:
    """Were a name to get through as markup, the page's policy would stop it; and it does so here."""
    text = webpage.html_page(traced, "Wide").replace(
        "<h1>",
        "<script>document.title = 'broken'</script><img src=x onerror='document.title=1'><h1>",
    )
    (tmp_path / "page.html").write_text(text)
    page = browser.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.getElementById('status').textContent !== ''")
    assert page.title() == "Wide"
    assert any("Content Security Policy" in message for message in refused)
    page.close()


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_the_page_of_the_command(opened: Any, framework: str, folder: Path, tmp_path: Path) -> None:
    page_file = tmp_path / "web" / "page.html"
    result = run(
        *(folder / "digits", folder / HOSTILE, "--model", f"digits:{framework}"),
        *("--r", "8", "--r", "16", "--html", page_file, "--output", tmp_path / "out.png"),
    )
    assert result.exit_code == 0, result.output
    assert f"Page: {page_file}" in result.stdout
    page = opened(page_file)
    status(page, "After layer 12 of 12: 101 of 197 tokens left")
    assert page.title() == f"Merged tokens of digits:{framework}"
    assert page.locator("#image option").all_text_contents() == ["0.png", "1.png", "2.png", HOSTILE]
    assert page.locator("#r option").all_text_contents() == ["8", "16"]
    page.select_option("#r", label="16")
    page.locator("#layer").fill("6")
    status(page, "After layer 6 of 12: 101 of 197 tokens left")
    shown = painted(page, "merged")
    assert shown.shape == (224, 224, 3)
    sheet = np.asarray(picture_in(tmp_path / "out.png"))
    top, left = 254 + 22, 8 + 2 * 232  # second row: r=16; third cell: after layer 6
    np.testing.assert_array_equal(shown, sheet[top : top + 224, left : left + 224])
    (data,) = page.locator("#data").all_text_contents()
    assert len(json.loads(data)["images"][0]["slots"][1]) == 12


def picture_in(path: Path) -> Image.Image:
    """The picture in a file, which is closed again."""
    with Image.open(path) as picture:
        picture.load()
    return picture
