"""Find phrases in Python files, documents and notebooks that are not plain English, and suggest others.

python tools/english.py            # list them
python tools/english.py --check    # exit 1 if there are any
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

#: files whose docstrings, comments and other strings are checked
FILES = ("tomecore/**/*.py", "examples/*.py", "benchmarks/*.py", "tools/*.py")
#: files whose docstrings and comments are checked; their other strings are data
DOCSTRINGS = ("tests/**/*.py", "tools/english.py")
#: documents, and notebooks, whose Markdown is checked
DOCUMENTS = (
    "*.md",
    "docs/**/*.md",
    "examples/*.md",
    "tomecore/**/*.md",
    "tests/**/*.md",
    "notebooks/*.ipynb",
)
#: generated documents, whose words are in the docstrings
GENERATED = ("docs/reference/*.md",)
#: the lines between these two are not checked in a document
OFF, ON = "<!-- english: off -->", "<!-- english: on -->"

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
    r"tokens? at the front|in front": "prefix tokens; before, first",
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
    r"made(?! up)": "created, built, computed",
    r"all that": "everything that, all ... that",
    r"behind": "after, below; out of date",
    r"beside": "next to, besides",
    r"(this|these) very|the very (?!first|last|same)\w+": "exactly this, this",
    r"held to|hold(s|ing)? \w+ to": "is compared with, must equal",
    r"knows? (nothing )?of": "knows, does not know",
    r"(another|otherwise) than": "other than, different from, differently from",
    r"(the|its|their) price": "the cost",
    r"as ever": "as before",
    r"strangers?": "unknown block, unknown code",
    r"storeys?": "layer, package",
    r"seams?": "interface",
    r"take[sn]? off": "remove",
    r"(gives?|gave|given) (out|away)": "returns, exposes",
    r"(is|are|was|were) there": "exists, is available",
    r"so many": "that many, at most N",
    r"wants": "needs",
    r"troubles?": "problem",
    r"\w+, for (they|it|we|he|she)": "because",
    r"prove[sd]? (itself|themselves|on)": "is tested, passes the test",
    r"tells": "shows, reports, returns whether",
    r"needs? of (an?|the|its)": "needs from",
    r"(first )?of equals|of equal \w+,? the first": "ties go to the first",
    r"contexts? without gradients": "context manager that disables gradients",
    r"(is|are) of another": "belongs to another, has another",
    r"most like (it|them)": "most similar",
    r"in another way|by other things": "differently, by other criteria",
    r"an? \w+ (\w+ )?of our own": "its own",
    r"stands? (twice|elsewhere|together|at the same)": "occurs, is, has the same position",
    r"tried out": "tested",
    r"is all it takes": "needs nothing else",
    r"\w+=\{\} must": "`name` must ...; got {value}",
}
#: regular expression for the beginning of a docstring -> what to write instead
BEGINNINGS = {
    r"(Of|And|But|Or|Nor|Also|Likewise|By|From|Where|Why|What|Whose)\b": (
        "start with a verb (Return ..., Raise if ...) or a noun"
    ),
    r"(?!(torch|timm|accelerate|transformers|tomecore|pip|docs)\b)[a-z][a-z]+\b(?![:'._(=/\w-])": (
        "start with a capital letter"
    ),
}
#: phrases that are right as they stand -> why
ALLOWED = {
    "in front of the patches": "where unknown tokens stand, which may not be prefix tokens",
    "in front of the grid": "where unknown tokens stand, which may not be prefix tokens",
    "no schedule makes this model": "a cause, not a computation",
}
#: a fenced block of code in a document
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
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


def find(source: str, file: str = "", *, data: bool = False) -> list[Finding]:
    """Return the phrases to replace in the source of a module, in the order of their lines.

    Args:
        source: of the module.
        file: its name.
        data: whether strings other than docstrings are data and are not checked.
    """
    texts = [text for text in strings(source) if text.docstring or not data]
    found = [
        Finding(file, *phrase) for text in (*texts, *comments(source)) for phrase in phrases(text)
    ]
    found += [] if data else [Finding(file, *piece) for piece in split_pieces(source)]
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


def find_in_document(source: str, file: str = "") -> list[Finding]:
    """Return the phrases to replace in Markdown: in its text, and in its blocks of Python."""
    hidden = re.compile(rf"{OFF}.*?{ON}", re.DOTALL)
    source = hidden.sub(lambda match: "\n" * match[0].count("\n"), source)
    found = []
    for block in BLOCK.finditer(source):
        if block["language"] == "python":
            first = source.count("\n", 0, block.start("code"))
            code = re.sub(f"(?m)^{block['indent']}", "", block["code"])
            found += [one._replace(line=one.line + first) for one in find(code, file)]
    prose = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), source)
    prose = re.sub(r"\]\([^)\s]*\)", "]", prose)
    found += [Finding(file, *phrase) for phrase in phrases(build_text(prose, 1))]
    return sorted(found, key=lambda finding: finding.line)


def find_in_notebook(source: str, file: str = "") -> list[Finding]:
    """Return the phrases to replace in the Markdown cells of a notebook, on the lines of its file."""
    raw, last, found = source.splitlines(), 0, []
    for cell in json.loads(source)["cells"]:
        numbers = []
        for line in cell["source"]:
            text = json.dumps(line, ensure_ascii=False)
            last = next(n for n in range(last, len(raw)) if text in raw[n]) + 1
            numbers.append(last)
        if cell["cell_type"] == "markdown":
            cell_found = find_in_document("".join(cell["source"]), file)
            found += [one._replace(line=numbers[one.line - 1]) for one in cell_found]
    return found


def find_in_file(path: Path) -> list[Finding]:
    """Return the phrases to replace in a file, by its kind."""
    name, source = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return find_in_document(source, name)
    if path.suffix == ".ipynb":
        return find_in_notebook(source, name)
    return find(source, name, data=path in matching(DOCSTRINGS))


def matching(patterns: tuple[str, ...]) -> set[Path]:
    """Return the files of the repository that match any of the patterns."""
    return {path for pattern in patterns for path in ROOT.glob(pattern)}


def files() -> list[Path]:
    """Return the files to check."""
    return sorted(matching((*FILES, *DOCSTRINGS, *DOCUMENTS)) - matching(GENERATED))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if there are any")
    check = parser.parse_args(arguments).check
    found = [finding for path in files() for finding in find_in_file(path)]
    for finding in found:
        print(finding)
    if found and check:
        sys.exit(
            f"{len(found)} phrases are not plain English. Rewrite them, or add them to ALLOWED in "
            "tools/english.py with the reason; see CONTRIBUTING.md, Words."
        )


if __name__ == "__main__":
    main()
