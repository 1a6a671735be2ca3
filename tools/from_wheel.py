"""Run the README and the tutorials from a wheel, each in a new environment and an empty folder.

python tools/from_wheel.py                  # everything is installed, as by a reader: gigabytes
python tools/from_wheel.py --reuse          # packages of the running Python, except tomecore: what CI runs
python tools/from_wheel.py --wheel FILE docs/tutorials/first-steps-torch.md    # a wheel that exists, one page

A page installs what it needs by its own commands. Versions are those of locks/full.txt, if the lock is for
the running Python. The exit code is 1 if a command fails or a block prints something else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from lock import constraint
from pages import ROOT

#: what a wheel is built from; a build in a clone would also pick up files of older builds
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "tomecore")
PAGES = ("README.md", "docs/tutorials/first-steps-torch.md", "docs/tutorials/first-steps-paddle.md")


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree in ``folder`` and return its path."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, source)
    build = ("wheel", "-q", "--no-deps", "-w", str(folder), str(source))
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def create_environment(folder: Path, reuse: bool) -> Path:
    """Create an environment and return its Python; with ``reuse`` it sees the packages of the running one."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    names = {"base": str(folder), "platbase": str(folder)}
    scripts, packages = (sysconfig.get_path(key, "venv", names) for key in ("scripts", "purelib"))
    if reuse:
        # A path in a .pth file comes after the environment's own packages, and pip finds what they have.
        borrowed = "\n".join(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))))
        (Path(packages) / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    return Path(scripts) / ("python.exe" if os.name == "nt" else "python")


def run(page: Path, wheel: Path, reuse: bool) -> bool:
    """Run a page in a new environment, and return whether everything in it is right."""
    print(page.relative_to(ROOT), flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        python = create_environment(Path(folder) / "venv", reuse)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PATH"] = os.pathsep.join([str(python.parent), environment.get("PATH", "")])
        if options := constraint("full"):
            environment["PIP_CONSTRAINT"] = str(ROOT / options.split()[-1])
        script = str(Path(__file__).with_name("run_page.py"))
        command = [str(python), script, str(page), "--wheel", str(wheel)]
        right = subprocess.run(command, env=environment).returncode == 0
    print(f"  {'right' if right else 'WRONG'}, {time.perf_counter() - start:.0f} s", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", type=Path, nargs="*", default=[ROOT / page for page in PAGES])
    parser.add_argument("--wheel", type=Path, help="a wheel that exists; without it, one is built")
    parser.add_argument(
        "--reuse", action="store_true", help="use the packages of the running Python"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel.resolve() if options.wheel else build_wheel(Path(folder))
        results = [run(page.resolve(), wheel, options.reuse) for page in options.pages]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
