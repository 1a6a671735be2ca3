"""Run the code of one page as a reader does, with the running Python, in an empty folder.

python tools/run_page.py docs/tutorials/first-steps-torch.md --wheel tomecore-0.1.0-py3-none-any.whl

Each command of a block of bash runs in a shell; the page's blocks of Python run in one process and share
their names. Blocks run in the order of the page. A block of Python must print the text after each ``# ->``.
Commands of pip install the wheel as tomecore; commands of make need a clone, so they do not run.
``from_wheel.py`` calls this in an environment that it creates.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from pages import blocks, expected_lines, shell_lines

#: tomecore in a command of pip, as ``_project.install_command`` names it: ".[torch,cli]", "tomecore[cli]" ...
_TOMECORE = re.compile(r'(?<=pip install )"(?:\.|tomecore)(\[[\w,-]+\])?(?: @ [^"]+)?"')


class PageError(Exception):
    """A command or a block of a page failed, or printed something else."""


def with_wheel(command: str, wheel: Path) -> str:
    """Return a command with the wheel where pip installs tomecore."""
    return _TOMECORE.sub(lambda found: f'"tomecore{found[1] or ""} @ {wheel.as_uri()}"', command)


def run_command(command: str) -> None:
    ended = subprocess.run(
        command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if ended.returncode:
        raise PageError(f"exit code {ended.returncode} of: {command}\n{ended.stdout}")


def run_python(source: str, line: int, page: str, names: dict[str, Any]) -> None:
    """Run a block and compare what it prints; a traceback has the page's own line numbers."""
    importlib.invalidate_caches()  # pip may have installed something since
    code = compile("\n" * (line - 1) + source, page, "exec")
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        exec(code, names)
    for warning in seen:
        if warning.category.__module__.startswith("tomecore"):
            raise PageError(f"{page}, block at line {line} warns: {warning.message}")
    expected = expected_lines(source)
    if expected and printed.getvalue().splitlines() != expected:
        text = "\n".join(["expected:", *expected, "printed:", printed.getvalue()])
        raise PageError(f"{page}, block at line {line}: {text}")


def check_origin() -> None:
    """Raise unless tomecore comes from the environment of the running Python."""
    import tomecore

    place = Path(tomecore.__file__).resolve()
    if not place.is_relative_to(Path(sys.prefix).resolve()):
        raise PageError(f"tomecore is imported from {place}, not from {sys.prefix}")


def run_page(page: Path, wheel: Path | None = None) -> None:
    """Run all code of a page in the current folder; raise :class:`PageError` at the first failure."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page.read_text(encoding="utf-8"), "bash", "python"):
        if block.language == "python":
            start = time.perf_counter()
            run_python(block.source, block.line, page.name, names)
            report(start, f"the block at line {block.line}")
            continue
        for command in shell_lines(block.source):
            start = time.perf_counter()
            if command.startswith("make "):
                print(f"  not run, needs a clone: {command}", flush=True)
                continue
            run_command(with_wheel(command, wheel) if wheel else command)
            report(start, command)


def report(start: float, what: str) -> None:
    print(f"  {time.perf_counter() - start:6.1f} s  {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--wheel", type=Path, help="what to install as tomecore")
    options = parser.parse_args()
    page, wheel = options.page.resolve(), options.wheel and options.wheel.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            run_page(page, wheel)
            check_origin()
        except PageError as error:
            sys.exit(str(error))
        finally:
            os.chdir(page.parent)


if __name__ == "__main__":
    main()
