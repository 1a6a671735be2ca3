"""Bring files outside docs/ into the documentation site, and check what a strict build does not check.

`mkdocs.yml` lists this file as a hook. Pages link to files of the repository (`../examples/custom_block.py`),
which is right where Markdown is shown without a site. On the site, `PAGES` are in the navigation, other
Markdown, Python files and notebooks are pages outside it, and other files are files.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Markdown outside docs/ that is in the navigation -> its page
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
#: a folder that pages link to -> the page that describes it
FOLDERS = {"benchmarks/results": "results.md"}
#: kinds of files that become pages
SHOWN = (".md", ".py", ".ipynb")
#: pages that a search does not find: code, raw results, and the past
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
SEARCHED = {*PAGES} - {"CHANGELOG.md"}

#: code, in which nothing is a link, or the target of a link or an image in Markdown or HTML
_TARGET = re.compile(
    r"(?P<code>^ *(?P<fence>`{3,}).*?^ *(?P=fence) *$|(?P<ticks>`+)(?:[^`\n]|\n(?!\n))+(?P=ticks))"
    r"|(?P<before>\]\(|\b(?:src|srcset|href)=\")(?P<target>[^)\s\"]+)",
    re.MULTILINE | re.DOTALL,
)
#: a nested list, or a paragraph of a list item, that Python-Markdown takes for a new one
_SHALLOW = re.compile(r"(?m)^ {1,3}(?:[-*]|\d+\.) |(?<=\n\n) {1,3}(?=\S)")
#: a list that follows a paragraph without an empty line
_UNSEPARATED = re.compile(r"(?m)^(?![-*] |\d+\. |[ #|<]|$).*\n(?=(?:[-*]|1\.) )")
#: what a page loads when it is opened, from another host
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|link(?![^>]*rel=\"?(?:canonical|prev|next|alternate)))\b"
    r"[^>]*?\b(?:src|href|srcset)=\"?((?:https?:)?//[^\s\">]+)"
)
_IMPORTED = re.compile(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\s\"')]+)")

log = logging.getLogger("mkdocs.hooks.site_pages")


def place_of(path: str) -> str:
    """Return the path in the site of a file or folder of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in FOLDERS:
        return FOLDERS[path]
    if path in PAGES:
        return PAGES[path]
    return f"{path}.md" if path.endswith((".py", ".ipynb")) else path


def targets(text: str, path: str) -> Iterator[tuple[re.Match[str], str, str]]:
    """Yield (match, file of the repository, rest of the link) for links of a page at ``path`` to files."""
    for found in _TARGET.finditer(text):
        target, hash_, anchor = (found["target"] or "").partition("#")
        if target and not re.match(r"[a-z]+:", target):
            file = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            yield found, file, hash_ + anchor


def relocate(text: str, path: str) -> str:
    """Return the Markdown of a page with links that are right in the layout of the site."""
    here, parts, end = posixpath.dirname(place_of(path)), [], 0
    for found, file, rest in targets(text, path):
        place = posixpath.relpath(place_of(file), here or ".")
        if found["before"] != "](" and place.endswith(".md"):  # MkDocs leaves HTML as it is
            place = f"{place.removesuffix('.md')}.html"
        parts += [text[end : found.start("target")], place + rest]
        end = found.end("target")
    return "".join([*parts, text[end:]])


def outside() -> set[str]:
    """Return the files outside docs/ that the site needs: PAGES, and what pages link to."""
    waiting = [
        *PAGES,
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    ]
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path in FOLDERS or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if path.endswith(".md"):
            waiting += [file for _, file, _ in targets((ROOT / path).read_text("utf-8"), path)]
    return {path for path in seen if not path.startswith(("docs/", ".."))}


def page_of(path: str) -> str:
    """Return the Markdown of the page that shows a file outside docs/."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".py"):
        return f"{UNSEARCHED}# {path}\n\n{fenced(text, 'python')}"
    if path.endswith(".ipynb"):
        return relocate("\n\n".join(cells(json.loads(text))), path)
    return ("" if path in SEARCHED else UNSEARCHED) + relocate(text, path)


def cells(notebook: Any) -> Iterator[str]:
    """Yield the cells of a notebook, and their outputs, as Markdown."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else fenced(source, "python")
        for output in cell.get("outputs", ()):
            image = output.get("data", {}).get("image/png")
            if image is not None:
                yield f"![What the code above draws](data:image/png;base64,{''.join(image.split())})"
            else:
                yield fenced("".join(output["text"]), "text")


def fenced(text: str, language: str) -> str:
    """Return text as a block of code."""
    return f"````{language}\n{text.rstrip()}\n````\n"


def faults(text: str) -> Iterator[str]:
    """Yield the lines that a code host shows as a list, and the site does not."""

    def masked(found: re.Match[str]) -> str:
        return re.sub(r".", "x", found[0]) if found["fence"] else found[0]

    text = _TARGET.sub(masked, text)
    for pattern in (_SHALLOW, _UNSEPARATED):
        for found in pattern.finditer(text):
            line = text.count("\n", 0, found.end()) + 1
            if pattern is _SHALLOW:
                yield f"line {line}: indent what is inside a list item by four spaces"
            else:
                yield f"line {line}: put an empty line before a list"


def on_config(config: Any) -> Any:
    """Take the repository's address from its one owner."""
    config.repo_url = runpy.run_path(str(ROOT / "tomecore" / "_project.py"))["REPOSITORY"]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in sorted(outside()):
        place = place_of(path)
        level = InclusionLevel.UNDEFINED if path in PAGES else InclusionLevel.NOT_IN_NAV
        if path.endswith(SHOWN):
            file = File.generated(config, place, content=page_of(path), inclusion=level)
        else:
            file = File.generated(config, place, abs_src_path=str(ROOT / path), inclusion=level)
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of pages in docs/ that lead out of it, and report lists that would not be lists."""
    name = page.file.src_uri
    for fault in faults(markdown):
        log.warning("%s, %s", name, fault)
    return markdown if page.file.generated_by else relocate(markdown, f"docs/{name}")


def on_post_build(config: Any) -> None:
    """Raise if a page loads anything from another host: the site works without a network."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    found = [
        f"{path.relative_to(site)} loads {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css")
        for address in loaded(path.read_text("utf-8"), path.suffix)
    ]
    if found:
        raise PluginError("the site must load nothing from other hosts:\n  " + "\n  ".join(found))


def loaded(text: str, suffix: str) -> list[str]:
    """Return the addresses on other hosts that an HTML or CSS file loads."""
    pattern = _LOADED if suffix == ".html" else _IMPORTED
    return [found[1] for found in pattern.finditer(text)]
