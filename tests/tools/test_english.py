"""The guard of plain English finds planted phrases, and nothing in clean text."""

from __future__ import annotations

import json
import re
import textwrap

import pytest
from scripts import ROOT, load_script


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/english.py")


#: planted phrases, one for each pattern at least -> the same in plain English
PLANTED = {
    "it is no module": "it is not a module",
    "where there are none": "if there are none",
    "no padding where there is no mask": "no padding if there is no mask",
    "it is asked at the first block": "it is called at the first block",
    "the spec, asked for its towers": "the spec, which lists its towers",
    "r asks for more": "r exceeds the limit",
    "the class token alone": "only the class token",
    "the last block makes the first tokens": "the last block computes the first tokens",
    "what the machine makes of it": "the speed on this machine",
    "what the library's kernels make of it": "the output of the library's kernels",
    "as the host made of it": "as the host computed it",
    "nobody reads it": "it is not read",
    "where somebody asks": "on demand",
    "whoever calls it": "the caller",
    "only the schedule is told": "only the schedule needs it",
    "likewise for sizes": "for sizes too",
    "that which merges": "what merges",
    "tokens at the front": "prefix tokens",
    "the token in front": "the prefix token",
    "hands on all tokens": "returns all tokens",
    "it hands the blocks back": "it returns the blocks",
    "it handed its run to a block": "it passed its run to a block",
    "cannot be had for it": "is not supported for it",
    "made anew": "computed again",
    "one after the other": "in sequence",
    "the sizes ride on the tensor": "the sizes are attached to the tensor",
    "dropped for nothing": "dropped without merging",
    "a picture": "an image",
    "merging goes on": "tokens still merge",
    "all but for a factor": "all except for a factor",
    "it does not let itself be inherited": "it does not allow subclasses",
    "a wish": "a target",
    "made for it": "built for it; made up",
    "all that it needs": "everything that it needs",
    "the tokens behind it": "the tokens after it",
    "the limit beside it": "the limit next to it",
    "this very model": "this model, on the very first call",
    "it is held to the definition": "it is compared with the definition",
    "it knows nothing of models": "it does not know models",
    "another than before": "other than before",
    "the price": "the cost",
    "it works as ever": "it works as before",
    "a stranger": "an unknown block",
    "a storey": "a layer",
    "a seam": "an interface",
    "take off": "remove",
    "it gives out tokens": "it returns tokens",
    "the mask is there": "the mask exists",
    "for so many rounds": "for that many rounds",
    "it wants gradients": "it needs gradients",
    "the troubles": "the problems",
    "slower, for it copies": "slower, because it copies",
    "it proves itself": "it is tested",
    "this tells how much": "this shows how much",
    "what it needs of a model": "what it needs from a model; the needs of models",
    "of equal tokens the first counts": "ties go to the first token",
    "a context without gradients": "a context manager that disables gradients",
    "the file is of another run": "the file belongs to another run",
    "the token most like it": "the most similar token",
    "computed in another way": "computed differently",
    "an attention half of our own": "its own attention half",
    "each patch stands twice": "each patch occurs twice; a slot stands for its tokens",
    "unknown blocks are tried out": "unknown blocks are tested",
    "being there is all it takes": "it runs without registration",
    "depth={} must be positive": "`depth` must be positive; got {}",
}


@pytest.mark.parametrize(("bad", "good"), PLANTED.items(), ids=PLANTED)
def test_a_planted_phrase_is_found(tool, bad, good):
    (found, *_) = tool.find_in_document(f"# Page\n\nSay: {bad}.\n", "page.md")
    assert (found.file, found.line) == ("page.md", 3)
    assert tool.find_in_document(f"# Page\n\nSay: {good}.\n") == []
    for source in ('"""Say: {}."""\n', "# {}\n", 'raise ValueError("say: {}")\n'):
        (found, *_) = tool.find(source.format(bad), "here.py")
        assert found.file == "here.py"
        assert found.line == 1
        assert found.phrase in bad
        assert tool.find(source.format(good)) == []


def test_every_pattern_finds_something(tool):
    found = {finding.instead for bad in PLANTED for finding in tool.find(f"# {bad}\n")}
    assert found == set(tool.PHRASES.values())


@pytest.mark.parametrize(
    "docstring",
    ["Of both: the larger.", "What a block keeps.", "Why not.", "the larger one."],
)
@pytest.mark.parametrize("place", ["{}", "class A:\n    {}\n", "def f():\n    {}\n"])
def test_a_docstring_that_begins_in_the_middle_of_a_sentence(tool, docstring, place):
    (found,) = tool.find(place.format(f'"""{docstring}"""'))
    assert found.phrase == " ".join(docstring.split()[:3])
    assert tool.find(place.format('"""Return the larger one."""')) == []
    assert tool.find(place.format('"""``x`` if it is larger."""')) == []
    assert tool.find(f'value = f(1, "{docstring}")\n') == []


def source(text):
    return textwrap.dedent(text).lstrip()


def test_the_line_is_that_of_the_phrase(tool):
    planted = source(
        '''
        """Merge.

        Only these merge; nobody
        reads the others.
        """
        x = 1  # clean
        # a comment whose phrase, that
        # which wraps, is found
        y = f"{x} tokens, told " \\
            f"to {x}"
        '''
    )
    found = [(one.line, one.phrase) for one in tool.find(planted)]
    assert found == [(3, "nobody"), (7, "that which"), (9, "told")]


def test_code_and_names_are_not_text(tool):
    clean = source(
        '''
        """Return ``asked`` and `alone` of :func:`likewise`."""
        anew = told(alone="nobody", wish={"picture": 1})
        there = "there is no token; it is no longer there"
        '''
    )
    assert tool.find(clean) == []


def test_a_message_in_odd_pieces_is_found(tool):
    broken = source(
        """
        raise ValueError(
            "the model has no blocks that tomecore knows; "
            "call the "
            f"function {name} on the model, then try again"
        )
        """
    )
    (found,) = tool.find(broken)
    assert (found.line, found.phrase) == (3, "call the ")
    assert tool.find(broken.replace('"call the "\n    f"', 'f"call the ')) == []


def test_in_a_document_text_and_python_are_checked(tool):
    page = source(
        """
        # Page

        Clean, with `made` and a [link](pictures/behind.png).

        ```bash
        made alone
        ```

        It was made
        by hand.

        ```python
        x = "told by nobody"  # made here
        ```
        <!-- english: off -->
        Nobody
        <!-- english: on -->
        - and somebody
        """
    )
    found = [(one.line, one.phrase) for one in tool.find_in_document(page)]
    assert found == [(9, "made"), (13, "nobody"), (13, "told"), (13, "made"), (18, "somebody")]


def test_in_a_notebook_markdown_is_checked(tool):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", 'It is "made".']},
        {"cell_type": "code", "source": ["made = 'told by nobody'"], "outputs": []},
        {"cell_type": "markdown", "source": ["Clean."]},
        {"cell_type": "markdown", "source": ["Nobody."]},
    ]
    notebook = json.dumps({"cells": cells}, indent=1)
    found = tool.find_in_notebook(notebook, "book.ipynb")
    assert [(one.file, one.phrase) for one in found] == [
        ("book.ipynb", "made"),
        ("book.ipynb", "Nobody"),
    ]
    lines = notebook.splitlines()
    assert [lines[one.line - 1].strip() for one in found] == [
        json.dumps(cells[0]["source"][2]),
        '"Nobody."',
    ]


def test_in_tests_only_docstrings_and_comments_are_checked(tool):
    planted = source(
        '''
        """It is told."""
        x = f(
            "made by nobody",
            "a "
            "b",
        )  # alone
        '''
    )
    found = [one.phrase for one in tool.find(planted, data=True)]
    assert found == ["told", "alone"]
    assert len(tool.find(planted)) > 2


def test_allowed_phrases_are_allowed_and_in_use(tool):
    texts = " ".join(
        text.words
        for path in tool.matching(tool.FILES)
        for text in (*tool.strings(path.read_text()), *tool.comments(path.read_text()))
    )
    for phrase, reason in tool.ALLOWED.items():
        assert reason
        assert tool.find(f"# five tokens {phrase}\n") == []
        assert phrase in texts, "no longer needed"
    assert tool.find("# tokens in front of the patches, and tokens in front\n")


def test_everything_is_clean(tool, capsys):
    names = {path.relative_to(ROOT).as_posix() for path in tool.files()}
    assert {
        *(
            "README.md",
            "CONTRIBUTING.md",
            "CHANGELOG.md",
            "docs/design.md",
            "docs/how-to/training.md",
        ),
        *("notebooks/torch.ipynb", "examples/custom_block.py", "benchmarks/matrix.py"),
        *(
            "tools/english.py",
            "tests/conftest.py",
            "tomecore/errors.py",
            "tomecore/models/torch.py",
        ),
    } <= names
    assert not any(name.startswith("docs/reference/") for name in names)
    assert len(names) > 400
    tool.main(["--check"])
    assert capsys.readouterr().out == ""


def test_a_planted_phrase_fails_the_check(tool, monkeypatch, tmp_path, capsys):
    (tmp_path / "clean.py").write_text('"""Return a plan."""\n')
    (tmp_path / "planted.py").write_text('"""Return a plan.\n\nNobody reads it.\n"""\n')
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "FILES", ("*.py",))
    monkeypatch.setattr(tool, "DOCSTRINGS", ("tests/*.py",))
    monkeypatch.setattr(tool, "DOCUMENTS", ("*.md",))
    with pytest.raises(SystemExit, match="1 phrases are not plain English"):
        tool.main(["--check"])
    assert capsys.readouterr().out.startswith("planted.py:3: 'Nobody': other code")
    tool.main([])  # lists it only
    monkeypatch.setattr(tool, "FILES", ("clean.py",))
    tool.main(["--check"])
    (tmp_path / "page.md").write_text("# Page\n\nNobody reads it.\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "one.py").write_text('x = "alone, told"  # alone\n')
    with pytest.raises(SystemExit, match="2 phrases are not plain English"):
        tool.main(["--check"])
    monkeypatch.setattr(tool, "GENERATED", ("page.md", "tests/*.py"))
    tool.main(["--check"])


def test_lint_runs_it():
    assert "tools/english.py --check" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def words():
    """The section Words of the contributors' page."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return page.partition("## Words\n")[2].partition("\n## ")[0]


def test_the_words_of_the_contributors_page(tool, words):
    table = words.partition("| use | for | not |\n|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
    assert len(rows) > 20
    for use, meaning, bad in rows:
        assert tool.find(f'"""Say: {use}, {meaning}."""\n') == [], use
        for phrase in filter(None, bad.split(", ")):
            assert tool.find(f"# it {phrase} it\n"), phrase


def test_the_examples_of_the_contributors_page(tool, words):
    table = words.partition("| instead of | write |\n|---|---|\n")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) == 10
    for before, after in rows:
        assert tool.find(f'"""{before}"""\n'), before
        assert tool.find(f'"""{after}"""\n') == [], after
