"""The code of the pages runs: every ```python block, and every ``tomecore`` command of a ```bash block.

The blocks of one page share their names and run in order, in their own folder with an image, ``photo.jpg``,
and a folder of class folders, ``photos``. They must print the text after each ``# ->``. Pages run as printed,
except that ``torch.compile`` stops before the C++ compiler. ``make wheel-test`` also runs README.md and the
tutorials from a wheel, with every command. ``docs/migration-from-plsc.md`` has a test of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import typer
from digit_files import pixels
from PIL import Image
from scripts import load_script
from typer.testing import CliRunner

import tomecore.adapters.torch as tome
from tomecore import backends
from tomecore.adapters.paddle import HOST as PADDLE
from tomecore.adapters.torch import HOST as TORCH
from tomecore.cli import app
from tomecore.errors import ClampWarning
from tomecore.models import digits

ROOT = Path(__file__).parents[2]
TOOL = load_script("tools/pages.py")
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples" / "README.md"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
OTHERS = {"migration-from-plsc.md"}  # pages that another test runs
PAGES = [
    README,
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name not in OTHERS),
]
COMMAND = typer.main.get_command(app)
LAUNCHED = re.compile(r".*(?:-m tomecore\.cli|\$\(which tomecore\)|tomecore) +(?=[a-z])")
#: commands that run and are not only parsed: models that need no model library
RUN = re.compile(r"digits:(?:torch|paddle)")
#: but these take long
NOT_RUN = ("bench", "demo", "export")


def named(page):
    return page.relative_to(ROOT).as_posix()


def commands(text):
    """The arguments of each ``tomecore`` command in the bash blocks."""
    found = []
    for block in TOOL.blocks(text, "bash"):
        for line in TOOL.shell_lines(block.source):
            if "tomecore" in line and not line.startswith(("pip ", "git ", "make ")):
                found.append(shlex.split(LAUNCHED.sub("", line, count=1)))
    return found


def read(arguments):
    """Parse a command like the command line; a mistake in it is an error here."""
    name, *rest = arguments
    assert name in COMMAND.commands, f"there is no command {name!r}"
    COMMAND.commands[name].make_context(name, rest)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which a page runs; everything that it registers is removed afterwards."""
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


def run(page):
    """Run the blocks of a page, and compare their output."""
    names = {"__name__": "__main__"}
    for _, line, source in TOOL.blocks(page.read_text(encoding="utf-8"), "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Blank lines before the code give tracebacks the page's own line numbers.
            exec(compile("\n" * (line - 1) + source, named(page), "exec"), names)
        said = TOOL.expected_lines(source)
        assert not said or printed.getvalue().splitlines() == said, (
            f"{named(page)}, block at line {line}"
        )


def test_the_pages_are_found():
    names = {named(page) for page in PAGES}
    assert {"README.md", "docs/index.md", "docs/tutorials/first-steps-torch.md"} <= names
    found = [TOOL.blocks(page.read_text(encoding="utf-8"), "python") for page in PAGES]
    assert sum(map(len, found)) > 20


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_blocks_run(page, folder):
    with warnings.catch_warnings():
        if page not in (README, *TUTORIALS):  # a newcomer sees no warning
            warnings.simplefilter("ignore", ClampWarning)
        run(page)


@pytest.mark.parametrize("page", PAGES, ids=named)
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


@pytest.mark.parametrize("page", [*PAGES, EXAMPLES], ids=named)
def test_links_lead_somewhere(page):
    text = TOOL.without_blocks(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{named(page)}: there is no {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"(?m)^#+ (.*)$", TOOL.without_blocks(file.read_text("utf-8")))
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{named(page)}: there is no heading {target}"


def test_every_page_is_one_link_from_the_start():
    listed = {
        (page.parent / target).resolve()
        for page in (README, ROOT / "docs" / "index.md")
        for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
    }
    pages = {page.resolve() for page in PAGES if "reference" not in page.parent.name}
    assert pages - {README} <= listed


def test_every_example_is_listed():
    listed = re.findall(r"\]\((\w+\.py)\)", EXAMPLES.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.parent.glob("*.py"))


def test_the_options_are_those_of_apply_patch():
    page = ROOT / "docs" / "options.md"
    source, *_ = (block.source for block in TOOL.blocks(page.read_text("utf-8"), "python"))
    shown = re.findall(r"^    (\w+)=(\w+),$", source, re.MULTILINE)
    real = inspect.signature(tome.apply_patch).parameters
    assert {name for name, _ in shown} == set(real) - {"model"}
    assert [(n, v) for n, v in shown if n != "r" and str(real[n].default) != v] == []
    rows = re.findall(r"^\| `(\w+)` \|", page.read_text("utf-8"), re.MULTILINE)
    assert rows == [name for name, _ in shown]


def test_the_readme_is_short_and_starts_with_two_commands():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) < 900
    lines = TOOL.shell_lines(TOOL.blocks(text)[0].source)
    assert lines == ["make demo", "make test"]
