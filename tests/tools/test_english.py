"""The guard of plain English finds planted phrases, and nothing in clean text."""

from __future__ import annotations

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
}


@pytest.mark.parametrize(("bad", "good"), PLANTED.items(), ids=PLANTED)
def test_a_planted_phrase_is_found(tool, bad, good):
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


def test_allowed_phrases_are_allowed_and_in_use(tool):
    texts = " ".join(
        text.words
        for path in tool.files()
        for text in (*tool.strings(path.read_text()), *tool.comments(path.read_text()))
    )
    for phrase, reason in tool.ALLOWED.items():
        assert reason
        assert tool.find(f"# five tokens {phrase}\n") == []
        assert phrase in texts, "no longer needed"
    assert tool.find("# tokens in front of the patches, and tokens in front\n")


def test_the_package_is_clean(tool, capsys):
    assert len(tool.files()) > 40
    tool.main(["--check"])
    assert capsys.readouterr().out == ""


def test_a_planted_phrase_fails_the_check(tool, monkeypatch, tmp_path, capsys):
    (tmp_path / "clean.py").write_text('"""Return a plan."""\n')
    (tmp_path / "planted.py").write_text('"""Return a plan.\n\nNobody reads it.\n"""\n')
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "FILES", ("*.py",))
    monkeypatch.setattr(tool, "LATER", ())
    with pytest.raises(SystemExit, match="1 phrases are not plain English"):
        tool.main(["--check"])
    assert capsys.readouterr().out.startswith("planted.py:3: 'Nobody': other code")
    tool.main([])  # lists it only
    monkeypatch.setattr(tool, "LATER", ("planted.py",))
    tool.main(["--check"])


def test_lint_runs_it():
    assert "tools/english.py --check" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_examples_of_the_contributors_page(tool):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Words\n")[2].partition("\n## ")[0]
    table = section.partition("| instead of | write |\n|---|---|\n")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) == 10
    for before, after in rows:
        assert tool.find(f'"""{before}"""\n'), before
        assert tool.find(f'"""{after}"""\n') == [], after
