"""Build the files of a release, and check them as a user gets them; `make release-check` runs it.

python tools/release.py                      # build, check, and try on every Python found
python tools/release.py --tag v0.1.0         # also check that tag, changelog and citation have the version
python tools/release.py --python python3.12  # try on this Python only; may be given several times

The files are built from a copy of the tracked files, so nothing else can get into them, and are kept in
build/release. In the copy, the relative links of README.md become absolute, because the page of a package has
no files next to it; without an address in tomecore/_project.py they stay, and are listed.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "release"
PYTHONS = [f"python3.{minor}" for minor in range(10, 15)]
#: extras to install -> the part of tools/smoke.py that runs then
LEVELS = {"": "core", "[cli]": "cli"}
#: what the build writes into an sdist besides the tracked files
WRITTEN = re.compile(r"PKG-INFO|setup\.cfg|tomecore\.egg-info/.*")
#: a target that is not absolute, in Markdown: [text](target), ![text](target), [label]: target
MARKDOWN_LINK = re.compile(r"(\]\(|^\[[^\]]+\]:\s+)(?!https?:|mailto:|#)([^)\s]+)", re.MULTILINE)
#: the same in the HTML of a Markdown page
HTML_LINK = re.compile(r"(\b(?:src|srcset|href)=\")(?!https?:|mailto:|#)([^\"\s]+)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
IMAGES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")


def constants() -> SimpleNamespace:
    """Return the names of tomecore/_project.py, without importing tomecore, which needs NumPy."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tomecore" / "_project.py")))


def version_of(root: Path = ROOT) -> str:
    """Return ``__version__`` as the source has it."""
    source = (root / "tomecore" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    return str(version)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command outside this environment, and return what it prints; exit if it fails."""
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def tracked() -> list[str]:
    """Return the files that git tracks and that exist."""
    if not (ROOT / ".git").exists():
        sys.exit("a release is built from a git checkout: this folder is not one")
    names = run("git", "ls-files", "-z").split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def relative_links(page: str) -> list[str]:
    """Return the targets of a Markdown page that are not absolute, outside blocks of code."""
    text = FENCE.sub("", page)
    return [found[2] for link in (MARKDOWN_LINK, HTML_LINK) for found in link.finditer(text)]


def with_absolute_links(page: str, ref: str, file_url) -> str:
    """Return a Markdown page from the root of the repository with addresses in place of relative links."""

    def address(found: re.Match[str]) -> str:
        path = found[2].partition("#")[0]
        return f"{found[1]}{file_url(found[2], ref, raw=path.endswith(IMAGES))}"

    parts = FENCE.split(page)
    for index in range(0, len(parts), 2):  # the odd parts are blocks of code
        parts[index] = HTML_LINK.sub(address, MARKDOWN_LINK.sub(address, parts[index]))
    return "".join(parts)


class Targets(HTMLParser):
    """The targets of an HTML page, in ``found``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("href", "src", "srcset")]


def faults_of_page(page: str, files: Iterable[str], has_address: bool) -> list[str]:
    """Return what is wrong with the page of the package: a Markdown text that a package index shows."""
    from readme_renderer import markdown

    html = markdown.render(page)
    if html is None:
        return ["README.md does not render as Markdown"]
    known = set(files)
    folders = {str(parent) for name in known for parent in Path(name).parents}
    relative = [
        one
        for one in Targets(html).found
        if not one.startswith(("http:", "https:", "mailto:", "#"))
    ]
    dead = [one for one in relative if one.partition("#")[0].rstrip("/") not in known | folders]
    faults = [f"README.md links to {one}, which does not exist" for one in dead]
    if has_address:
        faults += [
            f"README.md has a relative link on the page of the package: {one}" for one in relative
        ]
    return faults


def faults_of_sdist(names: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return how the files of an sdist, named from its folder, differ from the tracked ones."""
    found, expected = set(names), set(files)
    extra = [name for name in sorted(found - expected) if not WRITTEN.fullmatch(name)]
    return [
        *(f"the sdist lacks {name}: add it to MANIFEST.in" for name in sorted(expected - found)),
        *(f"the sdist has {name}, which is not tracked" for name in extra),
    ]


def faults_of_wheel(names: Iterable[str], files: Iterable[str], version: str) -> list[str]:
    """Return how the files of a wheel differ from the tracked ones of the package."""
    metadata = f"tomecore-{version}.dist-info/"
    found = {name for name in names if not name.startswith(metadata)}
    expected = {name for name in files if name.startswith("tomecore/")}
    return [
        *(
            f"the wheel lacks {name}: see package-data in pyproject.toml"
            for name in sorted(expected - found)
        ),
        *(
            f"the wheel has {name}, which is not a file of the package"
            for name in sorted(found - expected)
        ),
    ]


def faults_of_metadata(text: str, version: str, urls: dict[str, str], page: str) -> list[str]:
    """Return what is wrong with the METADATA of a wheel."""
    message = email.message_from_string(text)
    expected = {
        "Name": "tomecore",
        "Version": version,
        "License-Expression": "Apache-2.0",
        "License-File": "LICENSE",
        "Requires-Python": ">=3.10",
        "Description-Content-Type": "text/markdown",
    }
    faults = [
        f"the metadata has {name} {message[name]!r}, not {value!r}"
        for name, value in expected.items()
        if message[name] != value
    ]
    links = dict(one.split(", ", 1) for one in message.get_all("Project-URL", []))
    if links != urls:
        faults.append(
            f"the metadata has the addresses {links}, not those of tomecore/_project.py: {urls}"
        )
    if message.get_payload().strip() != page.strip():  # type: ignore[union-attr]
        faults.append("the description in the metadata is not README.md")
    return faults


def faults_of_tag(tag: str, version: str, changelog: str, citation: str) -> list[str]:
    """Return what still has another version than ``tag``, or has no date."""
    faults = (
        []
        if tag == f"v{version}"
        else [f"the tag {tag} is not v{version}, of tomecore/__init__.py"]
    )
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        faults.append(f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'")
    if not re.search(rf'^version: "?{re.escape(version)}"?$', citation, re.MULTILINE):
        faults.append(f"CITATION.cff has no line 'version: {version}'")
    if not re.search(r'^date-released: "?\d{4}-\d\d-\d\d"?$', citation, re.MULTILINE):
        faults.append("CITATION.cff has no line 'date-released: YYYY-MM-DD'")
    return faults


def build(folder: Path, files: list[str]) -> tuple[Path, Path]:
    """Build from a copy of ``files`` in ``folder``; return the sdist, and the wheel built from it."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    project = constants()
    if project.REPOSITORY is not None:
        page = (ROOT / "README.md").read_text(encoding="utf-8")
        page = with_absolute_links(page, f"v{version_of()}", project.file_url)
        (folder / "README.md").write_text(page, encoding="utf-8")
    shutil.rmtree(OUT, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", OUT, folder)
    (sdist,), (wheel,) = OUT.glob("*.tar.gz"), OUT.glob("*.whl")
    return sdist, wheel


def faults_of_files(sdist: Path, wheel: Path, page: str, files: list[str]) -> list[str]:
    """Return what is wrong with the two files of a release."""
    version, project = version_of(), constants()
    with tarfile.open(sdist) as archive:
        members = [one.name.partition("/")[2] for one in archive.getmembers() if one.isfile()]
    with zipfile.ZipFile(wheel) as zipped:
        names = zipped.namelist()
        metadata = zipped.read(f"tomecore-{version}.dist-info/METADATA").decode()
    return [
        *faults_of_page(page, files, project.REPOSITORY is not None),
        *faults_of_sdist(members, files),
        *faults_of_wheel(names, files, version),
        *faults_of_metadata(metadata, version, project.urls(), page),
    ]


def pythons() -> dict[str, str]:
    """Return name -> path of every Python from 3.10 on that is found and starts."""
    paths = {name: shutil.which(name) for name in PYTHONS}
    return {
        name: path
        for name, path in paths.items()
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    }


def try_on(python: str, wheel: Path) -> None:
    """Install the wheel on a Python in a new environment, and run tools/smoke.py there."""
    with tempfile.TemporaryDirectory() as folder:
        smoke = shutil.copy2(ROOT / "tools" / "smoke.py", folder)
        run(python, "-m", "venv", Path(folder) / "venv")
        own = Path(folder) / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        for extras, level in LEVELS.items():
            run(own, "-m", "pip", "install", "-q", f"{wheel}{extras}")
            run(own, "-I", smoke, version_of(), level, cwd=Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", help="the tag of the release")
    parser.add_argument("--python", action="append", help="instead of every Python found")
    asked = parser.parse_args()
    files, faults = tracked(), []
    if asked.tag:
        texts = [
            (ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff")
        ]
        faults += faults_of_tag(asked.tag, version_of(), *texts)
    with tempfile.TemporaryDirectory() as name:
        sdist, wheel = build(Path(name), files)
        page = (Path(name) / "README.md").read_text(encoding="utf-8")
    for file in (sdist, wheel):
        print(f"built {file.relative_to(ROOT)}, {file.stat().st_size / 1e6:.1f} MB")
    faults += faults_of_files(sdist, wheel, page, files)
    print(run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel).strip())
    if links := relative_links(page):
        print(
            f"README.md has {len(links)} relative links, which lead nowhere on the page of a package:"
        )
        print(f"    {', '.join(dict.fromkeys(links))}")
        print("    They become absolute once REPOSITORY in tomecore/_project.py is set.")
    if faults:
        sys.exit("\n".join(["The release is not ready:", *faults]))
    found = {name: name for name in asked.python} if asked.python else pythons()
    if not found:
        sys.exit(f"no Python was found to try the wheel on; looked for {', '.join(PYTHONS)}")
    for name, path in found.items():
        try_on(path, wheel)
        print(f"{name}: the wheel installs and works, {' and '.join(LEVELS.values())}")
    if absent := [name for name in PYTHONS if name not in found and not asked.python]:
        print(f"not tried, because they were not found: {', '.join(absent)}")


if __name__ == "__main__":
    main()
