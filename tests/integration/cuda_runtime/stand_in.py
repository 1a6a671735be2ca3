"""Build the stand-in for the CUDA runtime, run a script with it, and read its log.

python stand_in.py SCRIPT ARGUMENTS
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["Log", "build", "run"]

HERE = Path(__file__).parent


def headers() -> list[Path]:
    """Return the folders that may have headers of CUDA, in the order in which they are searched."""
    home = os.environ.get("CUDA_HOME")
    found = [Path(home, "include")] if home else []
    for folder in map(Path, sys.path):
        for pattern in ("nvidia/*/include", "triton/backends/nvidia/include"):
            found += sorted(folder.glob(pattern))
    return [folder for folder in found if folder.is_dir()]


def build(folder: Path) -> None:
    """Compile the runtime and the driver into ``folder``.

    Raises:
        FileNotFoundError: there is no cuda.h, or no gcc.
        CalledProcessError: gcc failed.
    """
    include = headers()
    cuda_h = next((one / "cuda.h" for one in include if (one / "cuda.h").exists()), None)
    if cuda_h is None:
        raise FileNotFoundError(
            "no cuda.h: install the CUDA build of torch, whose packages bring it, or set CUDA_HOME"
        )
    sys.path.insert(0, str(HERE))
    from driver import source_of

    (folder / "stub").mkdir(parents=True, exist_ok=True)
    (folder / "driver.c").write_text(source_of(cuda_h.read_text(encoding="utf-8")))
    gcc = ["gcc", "-O1", "-w", "-shared", "-fPIC"]
    runtime = [*(f"-I{one}" for one in include), "-o", folder / "libstandin.so", HERE / "runtime.c"]
    driver = [
        "-Wl,-soname,libcuda.so.1",
        "-o",
        folder / "stub" / "libcuda.so.1",
        folder / "driver.c",
    ]
    subprocess.run([*gcc, *runtime, "-ldl"], check=True)
    subprocess.run([*gcc, *driver], check=True)


def run(
    arguments: list[str], folder: Path, sm: int = 90, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Python with ``arguments`` and the stand-in that was built into ``folder``.

    It captures the output. ``check``: whether to raise RuntimeError with it if the script fails.
    """
    library = str(folder / "libstandin.so")
    ours = {
        "LD_PRELOAD": library,
        "LD_LIBRARY_PATH": str(folder / "stub"),
        "CUDA_STAND_IN": library,
        "CUDA_STAND_IN_SM": str(sm),
    }
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **ours}, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise RuntimeError(
            f"{command} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done


class Log:
    """The log of the stand-in, in a script that runs with it."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(os.environ["CUDA_STAND_IN"])
        self.library.show_crashes()

    def mark(self, name: str) -> None:
        """Write a line of its own."""
        self.library.log_mark(name.encode())

    def record(self, function: Callable[[], object]) -> list[str]:
        """Return the lines that a call of ``function`` wrote."""
        with tempfile.NamedTemporaryFile("r", suffix=".log") as file:
            self.library.log_begin(file.name.encode())
            try:
                function()
            finally:
                self.library.log_end()
            return file.read().splitlines()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        done = run(sys.argv[1:], Path(folder), int(os.environ.get("CUDA_STAND_IN_SM", 90)), False)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
