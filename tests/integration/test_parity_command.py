"""``tomecore parity`` and ``assert_parity`` on timm and PaddleClas, and on the models that come along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_files import write_folder
from test_real_pairs import build
from typer.testing import CliRunner, Result

from tomecore import cli, parity

DIGITS = ("digits:torch", "digits:paddle")
TINY = "timm:vit_tiny_patch16_224"
#: a pair of small models with the same random weights, for the command line
PAIR = """
import sys
sys.path.insert(0, {tests!r})
from test_real_pairs import build
from tomecore.loading.images import Preprocess
import tomecore.adapters.paddle, tomecore.adapters.torch

def a():
    return tomecore.adapters.torch.remove_patch(build("ViT", "float32")[0]), Preprocess((56, 56))

def b():
    model = tomecore.adapters.paddle.remove_patch(build("ViT", "float32")[1])
    return model, Preprocess((56, 56))

def wrong():
    model, preprocess = b()
    model.blocks[5].norm1._epsilon = 1e-5
    return model, preprocess
"""


def run(*arguments: Any) -> Result:
    arguments = ("parity", *map(str, arguments))
    return CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})


@pytest.fixture
def pair(tmp_path: Path) -> str:
    file = tmp_path / "pair.py"
    file.write_text(PAIR.format(tests=str(Path(__file__).parent)))
    return str(file)


def test_a_real_pair_agrees(pair: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = run(f"{pair}:a", f"{pair}:b", "--random", 2, "--r", 0, 16, "(12,-1)", "--json", out)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert result.stdout.count("They agree: outputs within") == 3
    assert result.stdout.rstrip().endswith("agree at all 3 r")
    found = json.loads(out.read_text())
    assert found["agrees"] is True
    assert [one["r"] for one in found["results"]] == [0, 16, [12, -1]]
    assert [len(one["report"]["layers"]) for one in found["results"]] == [0, 12, 11]
    assert all(one["report"]["largest_difference"] < 1e-11 for one in found["results"])


def test_a_real_pair_with_a_fault(pair: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = run(f"{pair}:a", f"{pair}:wrong", "--random", 2, "--json", out)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert "They diverge at the keys of layer 5" in result.stdout
    assert "Likely cause: in layer 5, another epsilon: blocks.5.norm1 has 1e-06" in result.stdout
    assert "diverge at r=8" in result.stdout
    (found,) = json.loads(out.read_text())["results"]
    assert (found["agrees"], found["layer"]) == (False, 5)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_assert_parity_on_a_real_pair() -> None:
    model_a, model_b = build("distilled DeiT", "float64")
    images = np.random.default_rng(1).standard_normal((2, 3, 56, 56))
    parity.assert_parity(model_a, model_b, images, r=16)
    with torch.no_grad():
        weight = model_a.blocks[7].attn.proj.weight
        weight.copy_(weight.T.clone())
    with pytest.raises(AssertionError) as caught:
        parity.assert_parity(model_a, model_b, images, r=8)
    assert "They diverge at the merged tokens of layer 7" in str(caught.value)
    assert "the weights of blocks.7.attn.proj differ: b has the transpose of a" in str(caught.value)


def test_converted_weights(tmp_path: Path) -> None:
    result = run(TINY, "paddle:tiny", "--convert", "a-to-b", "--random", 1)
    assert result.exit_code == 0, result.output + repr(result.exception)
    path = tmp_path / "other.py"
    path.write_text(
        "from tomecore.models.paddle import VisionTransformer\n"
        "def vit():\n"
        "    return VisionTransformer(embed_dim=192, num_heads=3, qkv_bias=True, epsilon=1e-5)\n"
    )
    result = run(TINY, f"{path}:vit", "--convert", "a-to-b", "--random", 1)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert "another epsilon: blocks.0.norm1 has 1e-06 in a and 1e-05 in b" in result.stdout


def test_given_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from timm import create_model

    model = create_model("vit_tiny_patch16_224", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    arguments = (TINY, TINY, "--random", 1)
    same = (
        "--weights-a",
        tmp_path / "tiny.safetensors",
        "--weights-b",
        tmp_path / "tiny.safetensors",
    )
    result = run(*arguments, *same)
    assert result.exit_code == 0, result.output + repr(result.exception)
    result = run(*arguments, *same[:2])
    assert result.exit_code == 2
    assert (
        "has random weights, so nothing can agree with it; give --weights-b FILE" in result.output
    )


def test_digits_in_float32() -> None:
    result = run(*DIGITS, "--images", "digits", "--limit", 5, "--dtype", "float32", "--r", 16)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "5 held-out digits" in result.stdout
    assert "5 images, r=16, float32, tolerance 0.0001 * largest + 1e-06" in result.stdout
    tight = ("--images", "digits", "--limit", 5, "--dtype", "float32", "--rtol", 1e-12)
    assert run(*DIGITS, *tight).exit_code == 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", 9)
    (tmp_path / "data" / "3" / "broken.png").write_bytes(b"no picture")
    result = run(*DIGITS, "--images", tmp_path / "data", "--batch", 4)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert f"9 of 10 images in {tmp_path / 'data'}" in result.stdout
    assert "1 of 10 images could not be read:" in result.stderr
    assert "broken.png cannot be read as an image" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*DIGITS, "--images", "nowhere"), "there is no folder or CSV file nowhere"),
        ((*DIGITS, "--images", "digits", "--random", 2), "give --images or --random, not both"),
        ((*DIGITS, "--r", "many"), "'many' is not an r"),
        (("digits:torch", "nothing"), "'nothing' does not name a model"),
        (("digits:torch", "paddle:tiny", "--convert", "a-to-b"), "takes images of (channels"),
        ((*DIGITS, "--weights-b", "x.pdparams", "--convert", "a-to-b"), "replaces the weights of"),
        ((*DIGITS, "--weights-b", "x.pdparams"), "there is no file of weights x.pdparams"),
        ((TINY, "paddle:tiny"), "has random weights"),
        (
            (TINY, "timm:deit_tiny_distilled_patch16_224", "--convert", "a-to-b"),
            "the weights are not those of this VisionTransformerDistilled",
        ),
    ],
)
def test_what_cannot_be_compared_ends_with_2(arguments: tuple[Any, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert words in " ".join(result.output.replace("│", " ").split())


def test_an_unreadable_folder_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = run(*DIGITS, "--images", tmp_path)
    assert result.exit_code == 2
    assert "none of the 1 images" in result.output


def test_a_crash_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text("def model():\n    raise ZeroDivisionError('planted')\n")
    result = run("digits:torch", f"{tmp_path / 'crash.py'}:model")
    assert result.exit_code == 2
    assert "ZeroDivisionError: planted" in result.output


def test_other_channels_are_no_matter_of_resolution(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tomecore.models.torch import VisionTransformer\n"
        "small = {'img_size': 56, 'depth': 2, 'embed_dim': 24, 'num_heads': 2}\n"
        "def grey():\n    return VisionTransformer(in_chans=1, **small)\n"
        "def colour():\n    return VisionTransformer(**small)\n"
    )
    grey, colour = f"{tmp_path / 'mine.py'}:grey", f"{tmp_path / 'mine.py'}:colour"
    result = run("digits:torch", colour)
    assert result.exit_code == 2
    assert "No option changes the channels" in result.stderr
    assert "--resolution" not in result.stderr
    result = run(grey, grey, "--random", 1)  # its channels are read from its first weight
    assert result.exit_code == 1, result.output
    assert "They diverge" in result.stdout
