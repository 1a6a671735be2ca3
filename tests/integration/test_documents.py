"""What the pages say is run: every ```python block, and every ``tomecore`` command of a ```bash block.

The blocks of one page share their names and run in order, in a folder of their own that holds a picture,
``photo.jpg``, and a folder of class folders, ``photos``; they print what stands behind ``# ->``. Pages run
as they are printed, but that ``torch.compile`` stops before the C++ compiler. The README's blocks
download weights and use images of the reader: what they get instead is in ``README``, by a line of each.
``docs/migration-from-plsc.md`` has a test of its own.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from digit_files import pixels
from PIL import Image
from typer.testing import CliRunner

from tomecore import backends
from tomecore.adapters.paddle import HOST as PADDLE
from tomecore.adapters.torch import HOST as TORCH
from tomecore.cli import app
from tomecore.errors import ClampWarning
from tomecore.models import digits

ROOT = Path(__file__).parents[2]
OTHERS = {"migration-from-plsc.md"}  # pages that another test runs
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name not in OTHERS)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
COMMAND = typer.main.get_command(app)
LAUNCHED = re.compile(r".*(?:-m tomecore\.cli|\$\(which tomecore\)|tomecore) +(?=[a-z])")
#: commands that are run, not only read: those of models that need no library of models, but the timings
RUN = re.compile(r"digits:(?:torch|paddle)")
NOT_RUN = ("bench", "demo")


def named(page):
    return page.relative_to(ROOT).as_posix()


def blocks(text, language):
    """(line, source) of every block of a language."""
    return [
        (text.count("\n", 0, found.start()) + 2, re.sub(f"(?m)^{found[1]}", "", found[3]))
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


def commands(text):
    """The arguments of each ``tomecore`` command in the bash blocks."""
    found = []
    for _, block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition("  #")[0]
            if "tomecore" in line and not line.startswith(("pip ", "#", "git ", "make ")):
                found.append(shlex.split(LAUNCHED.sub("", line, count=1)))
    return found


def read(arguments):
    """Parse a command as the command line would; a mistake in it is an error here."""
    name, *rest = arguments
    assert name in COMMAND.commands, f"there is no command {name!r}"
    COMMAND.commands[name].make_context(name, rest)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a page runs; what it registers is forgotten afterwards."""
    images, labels = digits.load("test")
    for index in range(12):
        path = tmp_path / "photos" / str(labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(images[index])).save(path)
    for digit in range(10):
        (tmp_path / "photos" / str(digit)).mkdir(exist_ok=True)
    Image.fromarray(pixels(images[0])).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "_known", dict(backends._known))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    yield tmp_path
    TORCH.registered.clear()
    PADDLE.registered.clear()
    backends._by_type.clear()


def run(page, names, only=None):
    """Run the blocks of a page, or the one that begins on line ``only``; they print what they say."""
    text = page.read_text(encoding="utf-8")
    for line, source in blocks(text, "python"):
        if only is None or line == only:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                # Blank lines before the code give tracebacks the page's own line numbers.
                exec(compile("\n" * (line - 1) + source, named(page), "exec"), names)
            said = re.findall(r"# -> (.*)$", source, re.MULTILINE)
            assert not said or printed.getvalue().splitlines() == said, (
                f"{named(page)}, block at line {line}"
            )
    return names


def test_the_pages_are_found():
    names = {named(page) for page in PAGES}
    assert {"docs/index.md", "docs/tutorials/first-steps-torch.md"} <= names
    assert sum(len(blocks(page.read_text(encoding="utf-8"), "python")) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run(page, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClampWarning)
        run(page, {"__name__": "__main__"})


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=named)
def test_commands_are_read(page):
    for arguments in commands(page.read_text(encoding="utf-8")):
        read(arguments)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_run(page, folder):
    for arguments in commands(page.read_text(encoding="utf-8")):
        if arguments[0] not in NOT_RUN and RUN.search(" ".join(arguments)):
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{arguments}: {result.output}"


def test_a_command_with_a_mistake_is_noticed():
    text = "```bash\ntomecore plan --model digits:torch --speed 2  # no such option\n```\n"
    (arguments,) = commands(text)
    with pytest.raises(Exception, match="--speed"):
        read(arguments)
    with pytest.raises(AssertionError, match="no command 'show'"):
        read(["show"])


def test_commands_behind_launchers_are_found():
    text = (
        "```bash\ntorchrun --nproc-per-node 2 -m tomecore.cli evaluate a --model b\n"
        "python -m paddle.distributed.launch $(which tomecore) evaluate a \\\n    --model b\n```\n"
    )
    assert commands(text) == [["evaluate", "a", "--model", "b"]] * 2


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=named)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{named(page)}: there is no {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"(?m)^#+ (.*)$", FENCE.sub("", file.read_text("utf-8")))
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{named(page)}: there is no heading {target}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\(([^)#\s]+\.md)", index))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert there - {"index.md"} <= listed


# The README: a line by which a block is recognised, and what it gets.


def narrow_timm(monkeypatch):
    import timm

    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained: create(name, pretrained=False, embed_dim=48, num_heads=4),
    )
    return {"images": torch.randn(2, 3, 224, 224)}


def narrow_clip(monkeypatch):
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.CLIPConfig(
        vision_config={**small, "patch_size": 16, "image_size": 224}, text_config=small
    )
    model = transformers.CLIPModel
    monkeypatch.setattr(model, "from_pretrained", classmethod(lambda cls, name: cls(config)))
    return {"tome": sys.modules["tomecore.adapters.torch"], "images": torch.randn(1, 3, 224, 224)}


def narrow_paddleclas(monkeypatch):
    import paddle
    from paddleclas.ppcls.arch import backbone

    def vit(pretrained):
        from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer

        return vision_transformer.VisionTransformer(embed_dim=48, num_heads=4, qkv_bias=True)

    monkeypatch.setitem(sys.modules, "ppcls.arch.backbone", backbone)
    monkeypatch.setattr(backbone, "ViT_base_patch16_224", vit)
    return {"images": paddle.randn([1, 3, 224, 224])}


def arrays(monkeypatch):
    generator = np.random.default_rng(0)
    return {
        "keys": generator.standard_normal((2, 197, 16)),
        "x": generator.standard_normal((2, 197, 32)),
        "sizes": None,
    }


def two_models(monkeypatch):
    from tomecore.adapters import paddle as tome_paddle
    from tomecore.adapters import torch as tome_torch
    from tomecore.models import paddle as of_paddle
    from tomecore.models import torch as of_torch

    config = {**digits.DIGITS_VIT, "depth": 2, "embed_dim": 24}
    return {
        "torch_model": tome_torch.apply_patch(of_torch.VisionTransformer.from_config(config), r=8),
        "paddle_model": tome_paddle.apply_patch(
            of_paddle.VisionTransformer.from_config(config), r=8
        ),
        "images": digits.load("test")[0][:2],
    }


README = {
    "timm.create_model(": narrow_timm,
    "CLIPModel.from_pretrained": narrow_clip,
    "ViT_base_patch16_224(": narrow_paddleclas,
    "model, r=16, protected=None": None,  # a signature, held to the code below
    "tc.bipartite_soft_matching(": arrays,
    "parity.transfer_weights(": two_models,
}


def readme_blocks():
    return blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")


def test_every_block_of_the_readme_has_one_setting():
    for line, source in readme_blocks():
        found = [known for known in README if known in source]
        assert len(found) == 1, (
            f"README.md, line {line}: the block fits {found}; add it to README in {__file__}"
        )


@pytest.mark.parametrize("known", [known for known, setting in README.items() if setting])
def test_the_readme_runs(known, folder, monkeypatch):
    (line,) = (line for line, source in readme_blocks() if known in source)
    names = {"__name__": "__main__", **README[known](monkeypatch)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClampWarning)
        run(ROOT / "README.md", names, only=line)


def test_the_signature_in_the_readme_is_the_real_one():
    import inspect

    import tomecore.adapters.torch as tome

    (source,) = (s for _, s in readme_blocks() if "model, r=16, protected=None" in s)
    shown = re.findall(r"(\w+)=(\w+)", source)
    real = inspect.signature(tome.apply_patch).parameters
    assert {name for name, _ in shown} == set(real) - {"model"}
    assert [(n, v) for n, v in shown if n != "r" and str(real[n].default) != v] == []
