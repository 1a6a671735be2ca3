"""Find phrases in docstrings, comments and strings that are not plain English, and suggest others.

python tools/english.py            # list them
python tools/english.py --check    # exit 1 if there are any
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: the files to check; add a pattern here when a part of the package is clean
FILES = (
    "tomecore/errors.py",
    "tomecore/core/*.py",
    "tomecore/matching/*.py",
    "tomecore/schedule/*.py",
    "tomecore/adapters/*.py",
    "tomecore/adapters/hosts/*.py",
    "tomecore/adapters/engine/*.py",
    "tomecore/benchmark/*.py",
    "tomecore/evaluation/*.py",
    "tomecore/parity/*.py",
    "tomecore/visualization/*.py",
    "tomecore/loading/*.py",
    "tomecore/cli/*.py",
    "tomecore/demo.py",
    "tomecore/frameworks.py",
    "tomecore/adapters/families/**/*.py",
    "tomecore/backends/**/*.py",
    "tomecore/models/**/*.py",
)
#: files among these that are not clean yet
LATER: tuple[str, ...] = ()

#: regular expression -> what to write instead; a space matches any white space
PHRASES = {
    r"(?<!there )(is|are|was|were) no (?!longer|more|less|fewer)": "is not a ...",
    r"where there (is|are) (none|no)": "if there are no ...",
    r"(is|are|be|was|were|if) asked|asked (of|for|to)": "is called with, is passed, should",
    r"ask(s|ing)? (for|of)": "needs, requests, exceeds",
    r"alone": "only, by itself",
    r"makes": "computes, returns, builds",
    r"(what|as) .{1,40} (makes?|made) of": "what ... computes from, the output of ... for",
    r"(nobody|somebody|anybody|whoever)": "other code, the caller; or turn the sentence around",
    r"told": "given, passed, reported",
    r"likewise": "too, in the same way",
    r"that which": "what, the one that",
    r"tokens? (at the|in) front": "prefix tokens",
    r"hand(s|ed|ing)?( \w+){0,3} (on|back|over)": "returns, passes on",
    r"hand(s|ed|ing)?( \w+){1,3} to": "passes ... to",
    r"(to|cannot|can|may) be had": "is available, is supported",
    r"anew": "again",
    r"one after the other": "in sequence, one at a time",
    r"(ride|rides|riding|ridden|rode) on": "is attached to",
    r"for nothing": "without effect",
    r"pictures?": "image",
    r"(go|goes|going|gone|went) on": "continue",
    r"but for": "except for",
    r"(let|lets|letting) (itself|themselves)": "allows",
    r"wish(es|ed)?": "target, requested value",
}
#: regular expression for the beginning of a docstring -> what to write instead
BEGINNINGS = {
    r"(Of|And|But|Or|Nor|Also|Likewise|By|From|Where|Why|What|Whose)\b": (
        "start with a verb (Return ..., Raise if ...) or a noun"
    ),
    r"[a-z]\w": "start with a capital letter",
}
#: phrases that are right as they stand -> why
ALLOWED = {
    "in front of the patches": "where unknown tokens stand, which may not be prefix tokens",
    "in front of the grid": "where unknown tokens stand, which may not be prefix tokens",
    "no schedule makes this model": "a cause, not a computation",
    "every block hands on all tokens, for decoders": "text of the README's table of models",
}
#: a piece of a message that is shorter than this, on a line of its own, was split by accident
SHORTEST = 30


class Text(NamedTuple):
    """A docstring, a block of comments, or a string, with the line on which each character stands."""

    words: str
    lines: tuple[int, ...]
    docstring: bool = False


class Finding(NamedTuple):
    """A phrase to replace."""

    file: str
    line: int
    phrase: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.phrase!r}: {self.instead}"


def find(source: str, file: str = "") -> list[Finding]:
    """Return the phrases to replace in the source of a module, in the order of their lines."""
    found = [
        Finding(file, line, phrase, instead)
        for text in (*strings(source), *comments(source))
        for line, phrase, instead in phrases(text)
    ]
    found += [Finding(file, *piece) for piece in split_pieces(source)]
    return sorted(found, key=lambda finding: finding.line)


def phrases(text: Text) -> Iterator[tuple[int, str, str]]:
    """Yield line, phrase and suggestion for each phrase in ``text`` that is not allowed."""
    allowed = [
        match.span()
        for phrase in ALLOWED
        for match in re.finditer(re.escape(phrase), text.words, re.IGNORECASE)
    ]
    for pattern, instead in PHRASES.items():
        for match in re.finditer(rf"\b(?:{pattern})\b", text.words, re.IGNORECASE):
            start, end = match.span()
            if not any(first < end and start < last for first, last in allowed):
                yield text.lines[start], match[0], instead
    for pattern, instead in BEGINNINGS.items() if text.docstring else ():
        match = re.match(pattern, text.words)
        if match:
            yield text.lines[0], " ".join(text.words.split()[:3]), instead


def strings(source: str) -> Iterator[Text]:
    """Yield the docstrings and the other strings of a module, except names and keys (without a space)."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            value = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            value = node.value
        else:
            continue
        docstring = id(node) in docstrings
        if " " in value:
            yield build_text(value, node.lineno, counts=docstring, docstring=docstring)


def comments(source: str) -> Iterator[Text]:
    """Yield each block of comments on consecutive lines as one text."""
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if block and token.start[0] != last + 1:
            yield build_text("\n".join(block), last - len(block) + 1)
            block = []
        block.append(token.string.lstrip("#: "))
        last = token.start[0]
    if block:
        yield build_text("\n".join(block), last - len(block) + 1)


def build_text(value: str, line: int, *, counts: bool = True, docstring: bool = False) -> Text:
    """Build a Text: white space becomes one space, and code in backticks is blanked out.

    Args:
        value: the characters.
        line: the line of the first one.
        counts: whether a line break in ``value`` is one in the source, as in docstrings and comments.
        docstring: whether it is a docstring.
    """
    value = re.sub(r"`+[^`]*`+", lambda match: re.sub(r"\S", "`", match[0]), value)
    words, lines = [], []
    for character in value:
        if not character.isspace():
            words.append(character)
            lines.append(line)
        elif words and words[-1] != " ":
            words.append(" ")
            lines.append(line)
        line += counts and character == "\n"
    return Text("".join(words), tuple(lines), docstring)


def split_pieces(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the pieces of a message that a formatter left on a line of their own."""
    lines = source.splitlines()
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr | ast.Constant):  # without its first and last line
            inside.update(range(node.lineno + 1, node.end_lineno or 0))
    for number in sorted(inside):
        piece = lines[number - 1].strip()
        quoted = re.fullmatch(r"""f?(["'])(.*)\1""", piece)
        if quoted and len(quoted[2]) < SHORTEST and not quoted[2].rstrip().endswith((".", ":")):
            yield number, quoted[2], "join the pieces of the message, and wrap them again"


def files() -> list[Path]:
    """Return the files to check."""
    found = {path for pattern in FILES for path in ROOT.glob(pattern)}
    return sorted(found - {ROOT / name for name in LATER})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if there are any")
    check = parser.parse_args(arguments).check
    found = [
        finding
        for path in files()
        for finding in find(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    for finding in found:
        print(finding)
    if found and check:
        sys.exit(
            f"{len(found)} phrases are not plain English. Rewrite them, or add them to ALLOWED in "
            "tools/english.py with the reason; see CONTRIBUTING.md, Words."
        )


if __name__ == "__main__":
    main()
