"""Write docs/reference.md, the public names and what their docstrings say.

python tools/reference.py            # rewrite the page
python tools/reference.py --check    # exit 1 if the page is behind
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

#: module -> the names to describe; None: its __all__
MODULES: dict[str, tuple[str, ...] | None] = {
    "tomecore": None,
    "tomecore.adapters.torch": ("apply_patch", "remove_patch", "handle", "register"),
    "tomecore.adapters.paddle": ("apply_patch", "remove_patch", "handle", "register"),
    "tomecore.adapters.engine.handle": ("Handle",),
    "tomecore.adapters": ("Spec", "Anatomy", "Trim"),
    "tomecore.schedule": (
        *("Ratio", "for_tokens", "for_speedup", "Schedule"),
        *("parse_r", "tokens_per_layer"),
    ),
    "tomecore.schedule.arithmetic": None,
    "tomecore.evaluation": ("evaluate", "Result", "Row", "find", "Pictures", "draw"),
    "tomecore.benchmark": ("measure", "Measurement", "profile", "Profile", "free_drop", "draw"),
    "tomecore.visualization": ("make_visualization", "sources_by_layer", "patch_grid", "Grid"),
    "tomecore.parity": None,
    "tomecore.backends": ("Backend", "register", "backend_of", "check"),
    "tomecore.loading": ("load", "Loaded"),
    "tomecore.errors": None,
}
#: where a class is reached, if its module is none of the public ones
SHOWN = {"tomecore.adapters.engine.handle": "model.tome"}

BEGIN = """# Reference

Written by `tools/reference.py` from the docstrings; change those, not this page. B is the batch, N the tokens
of the input, n those that are left, C the width, D the width of a key, H the heads.

"""
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^ {4}(?! )([*\w, ]+):(?: (.*))?$")


def page() -> str:
    """The page, as text."""
    lines = [BEGIN]
    for name in MODULES:
        shown = SHOWN.get(name, name)
        lines.append(f"- [{shown}](#{slug(shown)})\n")
    for name, wanted in MODULES.items():
        module = importlib.import_module(name)
        shown = SHOWN.get(name, name)
        lines.append(f"\n## {shown}\n\n")
        if name not in SHOWN:
            lines.append(text_of(module, first_only=name == "tomecore.adapters"))
        for one in wanted or tuple(sorted(module.__all__, key=str.lower)):
            if not one.startswith("__"):
                lines.append(entry(shown, one, getattr(module, one)))
    return re.sub(r"\n{3,}", "\n\n", "".join(lines)).rstrip() + "\n"


def slug(heading: str) -> str:
    """The anchor that code hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def entry(module: str, name: str, found: Any) -> str:
    """One function or class, with what is public of it."""
    if not inspect.isclass(found):
        return f"\n### {module}.{name}\n\n```\n{name}{signature(found)}\n```\n\n{text_of(found)}"
    heading = module if module == "model.tome" else f"{module}.{name}"
    lines = [f"\n### {heading}\n\n" if module != "model.tome" else ""]
    if issubclass(found, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in found.__bases__)
        return "".join([*lines, f"{text_of(found).rstrip()} A {bases}.\n"])
    if dataclasses.is_dataclass(found) or module == "tomecore" or "Args:" in (found.__doc__ or ""):
        lines.append(f"```\n{name}{signature(found)}\n```\n\n")
    lines.append(text_of(found))
    members = [
        (member, value)
        for member, value in vars(found).items()
        if not member.startswith("_") and described(value)
    ]
    for member, value in members if not issubclass(found, enum.Enum) else ():
        lines.append(described_member(member, value))
    return "".join(lines)


def described(value: Any) -> bool:
    """Whether a member of a class is one to show: its author wrote of it."""
    if isinstance(value, property):
        return bool(value.fget and value.fget.__doc__)
    value = getattr(value, "__func__", value)
    return inspect.isfunction(value) and bool(value.__doc__)


def described_member(name: str, value: Any) -> str:
    if isinstance(value, property):
        said = text_of(value.fget).split("\n\n", 1)
        more = f"\n{said[1]}" if len(said) > 1 else ""
        return f"\n**`.{name}`** {said[0].strip()}\n{more}"
    function = getattr(value, "__func__", value)
    return f"\n**`.{name}{signature(function, bound=True)}`**\n\n{text_of(function)}"


def signature(function: Any, bound: bool = False) -> str:
    """Parameters with their defaults, and what comes back, as they are written."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[1 if bound else 0 :]
    parts, keyword_only = [], False
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        keyword_only = keyword_only or stars == "*"
        given = "" if one.default is one.empty else f"={default(one.default)}"
        parts.append(stars + one.name + given)
    returned = found.return_annotation
    arrow = "" if returned is found.empty or returned in ("None", None) else f" -> {returned}"
    text = f"({', '.join(parts)})"
    return text if inspect.isclass(function) else text + arrow


def default(value: Any) -> str:
    """A default as one would write it; what has no short form is ``...``."""
    if isinstance(value, bool | int | float | str | tuple | type(None)):
        return repr(value)
    return "..."


def text_of(found: Any, first_only: bool = False) -> str:
    """A docstring as Markdown."""
    doc = inspect.cleandoc(vars(found).get("__doc__") or "" if inspect.isclass(found) else "")
    doc = doc or inspect.getdoc(found) or ""
    doc = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", doc).replace("``", "`")
    paragraphs = doc.split("\n\n")
    if first_only:
        doc = paragraphs[0]
    lines: list[str] = []
    section = ""
    code = False
    for line in [*doc.splitlines(), ""]:
        heading = _SECTION.match(line)
        if code and line and not line.startswith("    "):
            while lines[-1] == "":
                lines.pop()
            lines += ["```", ""]
            code = False
        if heading:
            section = heading[1]
            lines += [f"**{section}**", ""]
            continue
        if section and line and not line.startswith("    "):
            section = ""
        if not section and line.startswith("    ") and not code:
            while lines and lines[-1] == "":
                lines.pop()
            lines += ["", "```"]
            code = True
        if not section:
            lines.append(line[4:] if code else line)
            continue
        item = _ENTRY.match(line) if section in {"Args", "Raises"} else None
        if item:
            lines.append(f"- `{item[1]}`: {item[2] or ''}".rstrip())
        else:
            indent = "  " if section in {"Args", "Raises"} else ""
            lines.append((indent + line.strip()).rstrip())
    while lines and lines[-1] == "":
        lines.pop()
    return "\n".join([*lines, "```"] if code else lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only say whether the page is up to date"
    )
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    new = page()
    if check and new != old:
        sys.exit("docs/reference.md is behind the docstrings: run tools/reference.py")
    if not check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
