"""Write docs/reference/: a page for each public module, from its docstrings, and one for the command line.

python tools/reference.py            # rewrite the pages
python tools/reference.py --check    # exit 1 if a page is out of date

The pages are committed, so that links to them work where Markdown is shown without a site, so that a review
shows what a change does to the interface, and so that `make docs` needs no framework.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

#: heading of the index -> module -> the names to describe; None: its __all__
GROUPS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "Patch a model": {
        "tomecore": None,
        "tomecore.adapters.torch": ("apply_patch", "remove_patch", "handle", "register"),
        "tomecore.adapters.paddle": ("apply_patch", "remove_patch", "handle", "register"),
        "tomecore.adapters.engine.handle": ("Handle",),
        "tomecore.adapters": ("apply_patch", "remove_patch", "Spec", "Anatomy", "Trim"),
    },
    "How many tokens merge, and which": {
        "tomecore.schedule": (
            *("Ratio", "for_tokens", "for_speedup", "search", "tune", "Found", "load", "Tuned"),
            *("Schedule", "parse_r", "tokens_per_layer"),
        ),
        "tomecore.schedule.arithmetic": None,
        "tomecore.schedule.gpu": None,
        "tomecore.matching": (
            *("tome", "bidirectional", "tome_cis", "diffrate", "evit", "pitome", "tofu", "ppt"),
            *("kth", "random", "drop_similar", "names", "find", "register", "needs", "needs_of"),
            "Context",
        ),
        "tomecore.matching.partitions": None,
        "tomecore.matching.selection": None,
    },
    "Tools": {
        "tomecore.loading": ("load", "Loaded"),
        "tomecore.loading.images": ("read_image", "Preprocess"),
        "tomecore.evaluation": ("evaluate", "Result", "Row", "find", "Pictures", "draw"),
        "tomecore.benchmark": (
            *("measure", "Measurement", "profile", "Profile", "free_drop", "draw"),
        ),
        "tomecore.exporting": None,
        "tomecore.visualization": (
            *("visualize", "preprocess_of", "make_visualization"),
            *("sources_by_layer", "patch_grid", "Grid"),
        ),
        "tomecore.parity": None,
    },
    "Models that come with tomecore": {
        "tomecore.models.torch": ("VisionTransformer", "load_weights"),
        "tomecore.models.paddle": ("VisionTransformer", "load_weights"),
        "tomecore.models.digits": None,
    },
    "Array libraries and errors": {
        "tomecore.backends": ("Backend", "register", "backend_of", "check"),
        "tomecore.errors": None,
    },
}
MODULES = {module: names for group in GROUPS.values() for module, names in group.items()}
#: module -> the path that users write instead
SHOWN = {
    "tomecore.adapters.engine.handle": "model.tome",
    "tomecore.models.digits": "tomecore.digits",
}

INDEX = """# Reference

These pages have all public names, with their docstrings. In shapes, B is the batch, N the number of tokens in
the input, n the number that is left, C the width, D the width of a key, and H the number of heads. Types
of arrays name their shapes: `Tokens` (B, N, C), `TokenKeys` (B, N, D), `Sizes` and `Mask` (B, N), and `Index`
(B, n).

- [The command line](command-line.md)
- [Environment variables](../environment.md)
- [JSON files](../json.md)

`tools/reference.py` writes this folder. To change a page, change the docstring.
"""
COMMANDS = """# Command line

The commands need the extra `cli`. `tomecore --help` lists them, and `tomecore COMMAND --help` shows what is
on this page. `python -m tomecore` does the same as `tomecore`.
"""
#: longer parameter lists have one line for each parameter
WIDTH = 60
_ROLE = re.compile(r":\w+:`(~?)([^`]+)`")
_DOCUMENT = re.compile(r"`docs/([\w/-]+\.md)`")
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^ {4}(?! )([*\w, ]+):(?: (.*))?$")


def pages() -> dict[str, str]:
    """Return file name -> text, of all pages."""
    found = {"index.md": index_page(), "command-line.md": command_page()}
    return found | {file_of(module): module_page(module) for module in MODULES}


def index_page() -> str:
    """Return the page that lists the others."""
    lines = [INDEX]
    for heading, modules in GROUPS.items():
        lines += [f"\n## {heading}\n\n", "| module | what it is |\n|---|---|\n"]
        for name in modules:
            module = importlib.import_module(name)
            described = module.Handle if shown(name) == "model.tome" else module
            first = text_of(described, name).split("\n\n", 1)[0].replace("\n", " ").strip()
            lines.append(
                f"| [`{shown(name)}`]({file_of(name)}) | {first.replace('|', '&#124;')} |\n"
            )
    return "".join(lines)


def module_page(name: str) -> str:
    """Return the page of a module."""
    module = importlib.import_module(name)
    lines = [f"# {shown(name)}\n\n"]
    if shown(name) == "model.tome":
        lines.append(entry(name, "Handle", module.Handle, level=1))
    else:
        lines.append(text_of(module, name))
        for one in names_of(name):
            lines.append(entry(name, one, getattr(module, one)))
    return re.sub(r"\n{3,}", "\n\n", "".join(lines)).rstrip() + "\n"


def names_of(name: str) -> list[str]:
    """Return the names that a module's page describes, in their order."""
    module = importlib.import_module(name)
    wanted = MODULES[name]
    if wanted is not None:
        return list(wanted)
    names = {one for one in module.__all__ if not one.startswith("__")}
    if name == "tomecore":  # with what is imported on first use
        names |= {one for one in dir(module) if callable(getattr(module, one))}
    return sorted(names, key=str.lower)


def shown(name: str) -> str:
    """Return the path of a module that users write."""
    return SHOWN.get(name, name)


def file_of(name: str) -> str:
    """Return the file of a module's page."""
    return f"{shown(name).removeprefix('tomecore.')}.md"


def slug(heading: str) -> str:
    """Return the anchor that code hosts give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@functools.cache
def links() -> dict[str, str]:
    """Return dotted name -> link, for modules, functions and classes that have a page."""
    found = {}
    for module in MODULES:
        for path in (module, shown(module)):
            found[path] = file_of(module)
            for name in MODULES[module] or importlib.import_module(module).__all__:
                found[f"{path}.{name}"] = f"{file_of(module)}#{slug(name)}"
    return found


def entry(here: str, name: str, found: Any, level: int = 2) -> str:
    """Return a function, class or constant of the module ``here``, with its public members."""
    heading = f"\n{'#' * level} {name}\n\n" if level > 1 else ""
    if (home := home_of(here, name, found)) is not None:
        return f"{heading}The same as [`{home}`]({links()[home]}).\n"
    if not callable(found):
        return heading + constant(here, name)
    if not inspect.isclass(found):
        return f"{heading}```\n{name}{signature(found)}\n```\n\n{text_of(found, here)}"
    if issubclass(found, Exception):
        bases = ", ".join(f"`{base.__name__}`" for base in found.__bases__)
        return f"{heading}{text_of(found, here).rstrip()} A {bases}.\n"
    lines = [heading]
    if dataclasses.is_dataclass(found) or here == "tomecore" or "Args:" in (found.__doc__ or ""):
        lines.append(f"```\n{name}{signature(found)}\n```\n\n")
    lines.append(text_of(found, here))
    members = {
        member: value
        for member, value in vars(found).items()
        if not member.startswith("_") and described(value) and not issubclass(found, enum.Enum)
    }
    properties = {member: one for member, one in members.items() if isinstance(one, property)}
    if properties:
        lines.append("\n**Attributes**\n\n")
    for member, value in properties.items():
        text = textwrap.indent(text_of(value.fget, here), "    ").strip()
        lines.append(f"- `{member}`: {text}\n")
    for member, value in members.items():
        if member not in properties:
            function = getattr(value, "__func__", value)
            place = f"{'#' * (level + 1)} {member if level == 1 else f'{name}.{member}'}"
            call = f"{member}{signature(function, bound=True)}"
            lines.append(f"\n{place}\n\n```\n{call}\n```\n\n{text_of(function, here)}")
    return "".join(lines)


def home_of(here: str, name: str, found: Any) -> str | None:
    """Return the dotted name under which another page describes what ``tomecore`` only re-exports."""
    if here != "tomecore" or name in importlib.import_module(here).__all__:
        return None
    homes = (module for module in MODULES if module != here and name in names_of(module))
    return next(
        (
            f"{shown(module)}.{name}"
            for module in homes
            if getattr(importlib.import_module(module), name) is found
        ),
        None,
    )


def constant(here: str, name: str) -> str:
    """Return the assignment of a constant, and the text below it or the comment (``#:``) above it."""
    source = inspect.getsource(importlib.import_module(here))
    body, lines = ast.parse(source).body, source.splitlines()
    for number, node in enumerate(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name not in [one.id for target in targets if target for one in names_in(target)]:
            continue
        below = body[number + 1] if number + 1 < len(body) else None
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = str(below.value.value)
        above = node.lineno - 2
        while not text.strip() and lines[above].startswith("#:"):
            above -= 1
        text = text or "\n".join(line[2:].strip() for line in lines[above + 1 : node.lineno - 1])
        code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        return f"```\n{code}\n```\n\n{markdown(text[:1].upper() + text[1:], here)}"
    raise ValueError(f"{here} assigns no {name}")


def names_in(target: ast.AST) -> list[ast.Name]:
    """Return the names to which an assignment assigns."""
    return [node for node in ast.walk(target) if isinstance(node, ast.Name)]


def described(value: Any) -> bool:
    """Whether to show a member of a class: it must have a docstring of its own."""
    if isinstance(value, property):
        return bool(value.fget and value.fget.__doc__)
    value = getattr(value, "__func__", value)
    return inspect.isfunction(value) and bool(value.__doc__)


def signature(function: Any, bound: bool = False) -> str:
    """Return the parameters with their defaults, and the return type, as written in the source."""
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
    if len(text) > WIDTH:
        text = "(\n" + "".join(f"    {part},\n" for part in parts) + ")"
    return text if inspect.isclass(function) else text + arrow


def default(value: Any) -> str:
    """Return a default as in source code, or ``...`` if it has no short form."""
    if isinstance(value, bool | int | float | str | tuple | type(None)):
        return repr(value)
    return "..."


def text_of(found: Any, here: str = "") -> str:
    """Return a docstring as Markdown; names are those of the module ``here``."""
    doc = inspect.cleandoc(vars(found).get("__doc__") or "" if inspect.isclass(found) else "")
    doc = doc or inspect.getdoc(found) or ""
    if isinstance(found, ModuleType) and shown(found.__name__) != found.__name__:
        doc = doc.replace(found.__name__, shown(found.__name__))
    return markdown(doc, here)


def markdown(doc: str, here: str) -> str:
    """Return the text of a docstring as Markdown; names are those of the module ``here``."""

    def link(role: re.Match[str]) -> str:
        name = role[2].removesuffix("()")
        label = f"`{name.rpartition('.')[2] if role[1] else role[2]}`"
        target = links().get(name, links().get(f"{here}.{name}"))
        return label if target is None else f"[{label}]({target})"

    doc = _ROLE.sub(link, inspect.cleandoc(doc)).replace("``", "`")
    doc = _DOCUMENT.sub(r"[`docs/\1`](../\1)", doc)
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


def command_page() -> str:
    """Return the page of the command line, from the help of its commands."""
    from typer.main import get_command

    from tomecore.cli import app

    group: Any = get_command(app)
    lines = [COMMANDS]
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=name)
        pieces = [re.sub(r"[{}]", "", one) for one in command.collect_usage_pieces(context)]
        usage = " ".join(["tomecore", name, *pieces])
        lines.append(f"\n## {name}\n\n```\n{usage}\n```\n\n{help_text(command.help)}")
        lines.append("\n| option | default | meaning |\n|---|---|---|\n")
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None:
                lines.append(option_row(*record))
    return "".join(lines)


def help_text(text: str) -> str:
    """Return the help of a command as Markdown: commands are code, and so are blocks after ``\\b``."""
    found = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            found.append("```\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        elif examples := re.fullmatch(r"(Examples?): *\n? *(tomecore .*)", paragraph, re.DOTALL):
            found.append(f"{examples[1]}:\n\n```\n{' '.join(examples[2].split())}\n```")
        else:
            found.append(paragraph)
    return "\n\n".join(found) + "\n"


def option_row(name: str, text: str) -> str:
    """Return the row of an option in its table, from the two columns of its help."""
    parts = re.fullmatch(r"(.*)(?:^|  )\[(.*)\]", text, re.DOTALL)
    meaning, extra = parts.groups() if parts else (text, "")
    extras = [one for one in extra.split("; ") if one]
    cell = ""
    for one in extras:
        if one.startswith("default: "):
            value = one.removeprefix("default: ")
            cell = value[1:-1] if value.startswith("(") else f"`{value}`"
        elif one == "required":
            cell = "required"
        else:
            meaning += f" ({one})"
    option, _, kind = name.partition(" <")
    kind = kind.removesuffix(">").replace(" range", "")
    if "|" in kind:
        meaning += f" One of {', '.join(f'`{value}`' for value in kind.split('|'))}."
        kind = ""
    if listed := re.fullmatch(r"list\[(.*)\]", kind):
        kind = f"{listed[1]}, several"
    meaning = meaning.replace("|", "&#124;").replace("<", "&lt;").strip()
    return f"| {f'`{option}` {kind}'.strip()} | {cell} | {meaning} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only say whether the pages are up to date"
    )
    check = parser.parse_args().check
    new = pages()
    old = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if check and stale:
        sys.exit(f"out of date in docs/reference: {', '.join(stale)}; run tools/reference.py")
    for name in stale:
        if name in new:
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / name).write_text(new[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()


if __name__ == "__main__":
    main()
