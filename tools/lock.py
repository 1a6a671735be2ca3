"""Write and read the locks: every version of an environment in which the tests pass.

python tools/lock.py constraint full    # print pip's options for the running Python; none without a lock
python tools/lock.py write full         # write locks/full.txt from the packages of the running Python
python tools/lock.py table              # rewrite the table of docs/supported.md (--check: only compare)

``full`` is the environment of `make demo`, `make test` and CI; ``bare`` is that of `make test-bare`, and
``docs`` that of `make docs`. A lock is for one Python on one platform. Use it as `pip install -c`, or install
all of it with `pip install --no-deps -r`.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from pathlib import Path

from pages import SUPPORTED, with_part

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
BEGIN, END = "<!-- versions: tools/lock.py writes this -->\n", "<!-- versions: end -->\n"
#: name in the table -> distribution, in the order of the table
SHOWN = {
    "NumPy": "numpy",
    "array-api-compat": "array-api-compat",
    "PyTorch": "torch",
    "Paddle": "paddlepaddle",
    "timm": "timm",
    "transformers": "transformers",
    "open_clip": "open-clip-torch",
    "torchvision": "torchvision",
    "Numba": "numba",
}


def running() -> str:
    """Return the running Python, as the first line of a lock names it."""
    python = f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}"
    return f"{python} on {sys.platform} {platform.machine()}"


def path_of(name: str) -> Path:
    return LOCKS / f"{name}.txt"


def made_for(name: str) -> str:
    """Return the Python to which a lock applies."""
    return path_of(name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def normal(name: str) -> str:
    """Return a distribution's name in the form that all its spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str) -> dict[str, str]:
    """Return distribution -> version, of a lock."""
    lines = path_of(name).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normal(distribution): version for distribution, version in pairs}


def floors() -> dict[str, str]:
    """Return distribution -> the oldest version allowed, from pyproject.toml and the requirements files."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    files = (ROOT / "tests" / "integration").glob("requirements*.txt")
    text = "\n".join([project, *(file.read_text(encoding="utf-8") for file in sorted(files))])
    found = re.findall(r'(?:^|")([\w-]+)>=([\d.]+)', text, re.MULTILINE)
    return {normal(name): version for name, version in found}


def lines_of(freeze: str) -> list[str]:
    """Return the lines of ``pip freeze``; exit if one is not a version of a package index."""
    lines = [line for line in freeze.splitlines() if line and not line.startswith("#")]
    if bad := [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!+-]+", line)]:
        sys.exit(
            f"a lock takes name==version only, not {', '.join(bad)}: reinstall from the registry"
        )
    return lines


def write(name: str) -> None:
    """Write a lock from the packages of the running Python."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable", "--exclude", "tomecore"]
    frozen = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    head = [f"# {running()}", f"# Written by `make lock`: tools/lock.py write {name}"]
    LOCKS.mkdir(exist_ok=True)
    path_of(name).write_text("\n".join([*head, *lines_of(frozen)]) + "\n", encoding="utf-8")


def constraint(name: str) -> str:
    """Return the pip options for a lock; none, with a line on stderr, if it is for another Python."""
    if made_for(name) == running():
        return f"-c {path_of(name).relative_to(ROOT)}"
    text = (
        f"locks/{name}.txt is for {made_for(name)}, this is {running()}: installing without a lock"
    )
    print(text, file=sys.stderr)
    return ""


def table() -> str:
    """Return the table of the oldest version allowed and the locked one."""
    oldest, tested = floors(), locked("full")
    python = re.search(
        r'^requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert python is not None
    rows = [("Python", python[1], made_for("full").split()[1])]
    rows += [(shown, oldest[name], tested[name]) for shown, name in SHOWN.items()]
    lines = ["| | oldest | locked |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def updated(page: str) -> str:
    """Return ``page`` with the new table in its place."""
    return with_part(page, BEGIN, table(), END)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("constraint", "write"):
        commands.add_parser(command).add_argument("lock", choices=["full", "bare", "docs"])
    commands.add_parser("table").add_argument("--check", action="store_true")
    asked = parser.parse_args()
    if asked.command == "constraint":
        print(constraint(asked.lock))
    elif asked.command == "write":
        write(asked.lock)
    else:
        old = SUPPORTED.read_text(encoding="utf-8")
        new = updated(old)
        if asked.check and new != old:
            sys.exit(
                "the table of versions in docs/supported.md is out of date: run tools/lock.py table"
            )
        if not asked.check:
            SUPPORTED.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
